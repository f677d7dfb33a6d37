"""Answers the requests of a batch: as many at once as allowed, each written as soon as it is answered.

Knows clients, not where a cluster comes from. What follows a failure is decided by retry.py and performed here.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from twinpool.client.client import AsyncClient
from twinpool.client.results import GenerationResult, Usage
from twinpool.client.timeout import Timeout
from twinpool.cluster.batch.line import Line, Problem, Stumbled, refusal
from twinpool.cluster.batch.output_file import OutputFile
from twinpool.cluster.batch.record import Record, answer_record, problem_record
from twinpool.cluster.batch.retry import MAX_LEFT, MAX_TRIES, Consequence, Patience, judge, pause_s
from twinpool.cluster.batch.tally import Tally
from twinpool.cluster.openai_answers import answer_body
from twinpool.cluster.openai_bodies import Ask, named_as_in
from twinpool.core.errors import InvalidRequest, SpecError, TwinpoolError

log = logging.getLogger(__name__)

PREFERRED_GOAL_CLASS = "batch"
SYNC_EVERY_S = 2.0

DEFAULT_TIMEOUT = Timeout(first_token_s=900, between_tokens_s=120, total_s=3600)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a batch is run. ``goal_class`` None: ``batch`` where the cluster has it, else its default."""

    concurrency: int = 64
    goal_class: str | None = None
    patience_s: float = 300.0
    timeout: Timeout = DEFAULT_TIMEOUT
    tenant: str | None = None


class GivenUp(TwinpoolError):
    """The cluster was away or full for longer than the batch waits, or fails whatever it is asked."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer as it is written, and the tokens it took."""

    raw: bytes
    usage: Usage


class BatchRun:
    """One run over what earlier runs left. Owns the tally; the output's owner closes it."""

    def __init__(self, lines: Iterator[Line], output: OutputFile, tally: Tally, settings: RunSettings) -> None:
        self._lines = lines  # shared by all tasks below: each takes the next one
        self._output = output
        self._tally = tally
        self._settings = settings
        self._patience = Patience(settings.patience_s)
        self._goal_class = settings.goal_class or PREFERRED_GOAL_CLASS
        self._model = ""
        self._left_in_a_row = 0
        self._is_dirty = False

    async def answer_all(self, addresses: Sequence[str]) -> None:
        """Answer every line, with one client for each gateway, so that all gateways get their share.

        Raises:
            SpecError: the goal class that was asked for does not exist.
            GivenUp: the cluster is away, full or broken. TwinpoolError: it refuses us.
            OSError: the output is full, or the input cannot be read any more; ``filename`` says which.
        """
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    AsyncClient(
                        [*addresses[index:], *addresses[:index]],
                        timeout=self._settings.timeout,
                        tenant=self._settings.tenant,
                    )
                )
                for index in range(len(addresses))
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    sync = group.create_task(self._sync_often())
                    async with asyncio.TaskGroup() as workers:
                        for index in range(self._settings.concurrency):
                            workers.create_task(self._work(clients[index % len(clients)]))
                    sync.cancel()
            except BaseExceptionGroup as errors:
                raise first_leaf(errors) from None

    async def _work(self, client: AsyncClient) -> None:
        for line in self._lines:
            match line.content:
                case Problem():
                    self._write_problem(line, line.content)
                case Stumbled():
                    self._leave(line, line.content)
                case Ask():
                    await self._answer(client, line, line.content)
            await asyncio.sleep(0)  # a file of bad lines must not keep the others waiting

    async def _answer(self, client: AsyncClient, line: Line, ask: Ask) -> None:
        tries, pauses = 0, 0
        while True:
            goal_class = self._goal_class
            outcome = await self._try(client, line, ask)
            if isinstance(outcome, _Answer):
                self._write_answer(line, outcome)
                return
            if isinstance(outcome, InvalidRequest) and outcome.field == "goal_class":
                self._without_goal_class(goal_class, outcome)
                continue
            consequence = judge(outcome)
            if consequence is Consequence.FINAL:
                self._write_problem(line, _problem(line, outcome))
                return
            if consequence is Consequence.STOP:
                raise outcome
            tries += consequence is not Consequence.WAIT
            if consequence is Consequence.LEAVE or tries >= MAX_TRIES:
                self._leave(line, outcome)
                return
            pauses += 1
            await asyncio.sleep(pause_s(pauses, outcome))

    async def _try(self, client: AsyncClient, line: Line, ask: Ask) -> _Answer | TwinpoolError:
        """Ask once. Whatever is raised over one line is its outcome, so that it is no other line's.

        Raises:
            GivenUp: nothing but "not now" has been heard for too long.
        """
        self._patience.asked(line.key, time.monotonic())
        try:
            result = await self._generate(client, ask)
            body = answer_body(ask, result, model=self._model, created_s=int(time.time()))
            outcome: _Answer | TwinpoolError = _Answer(answer_record(line, result.request_id, body), result.usage)
        except TwinpoolError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - it stays with its line, which is left for another run
            outcome = Stumbled.over(error)
        if isinstance(outcome, TwinpoolError) and judge(outcome) is Consequence.WAIT:
            self._wait(line, outcome)
        else:
            self._patience.taken(line.key)
        return outcome

    async def _generate(self, client: AsyncClient, ask: Ask) -> GenerationResult:
        if not self._model:
            self._model = (await client.models())[0].id
        return await client.generate(
            ask.prompt,
            model=ask.model,
            goal_class=self._goal_class or None,
            request_id=f"batch-{secrets.token_hex(12)}",  # another one for each try: the last may not have ended yet
            echo=ask.echo,
            **ask.sampling,
        )

    def _without_goal_class(self, tried: str, error: InvalidRequest) -> None:
        """The cluster has no such class: go on with its default, unless the class was asked for."""
        if self._settings.goal_class is not None:
            raise SpecError(f"--goal-class: {error.reason}")
        if not tried:
            raise error
        self._goal_class = ""

    def _wait(self, line: Line, error: TwinpoolError) -> None:
        now, limit_s = time.monotonic(), self._settings.patience_s
        waited_s = self._patience.refused(line.key, now)
        if self._patience.is_over(now):
            raise GivenUp(f"the cluster took no request for {limit_s:g} s: {error}")
        counted = f"{waited_s:.0f} of {limit_s:g} s" if waited_s <= limit_s else "requests are still under way"
        self._tally.note = f"waiting for the cluster ({counted}): {error}"

    def _leave(self, line: Line, error: TwinpoolError) -> None:
        self._tally.leave(line, f"{type(error).__name__}: {error}")
        if isinstance(error, Stumbled):
            log.error("line %d: unexpected %s", line.number, error, exc_info=error.__cause__)
            return
        self._left_in_a_row += 1
        if self._left_in_a_row >= MAX_LEFT:
            raise GivenUp(f"{MAX_LEFT} requests in a row failed, the last with {type(error).__name__}: {error}")

    def _write_answer(self, line: Line, answer: _Answer) -> None:
        self._tally.prompt_tokens += answer.usage.prompt_tokens
        self._tally.completion_tokens += answer.usage.completion_tokens
        self._heard()
        self._write(answer.raw, Record(line.key, is_ok=True))

    def _write_problem(self, line: Line, problem: Problem) -> None:
        if not isinstance(line.content, Problem):
            self._heard()
        self._tally.failed += 1
        self._write(problem_record(line, problem), Record(line.key, is_ok=False))

    def _heard(self) -> None:
        self._left_in_a_row = 0
        self._tally.note = ""

    def _write(self, raw: bytes, record: Record) -> None:
        self._output.append(raw, record)
        self._tally.answered += 1
        self._is_dirty = True

    async def _sync_often(self) -> None:
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            if self._is_dirty:
                self._is_dirty = False
                await asyncio.to_thread(self._output.sync)


def _problem(line: Line, error: TwinpoolError) -> Problem:
    """Of an error that is final."""
    match error:
        case InvalidRequest():
            return refusal(named_as_in(line.body, error))
        case _:
            return Problem("model_not_found", str(error), "model")


def first_leaf(errors: BaseExceptionGroup[Any]) -> BaseException:
    """One error of a group, whatever the nesting: one cause is enough for whoever started the run."""
    first: BaseException = errors.exceptions[0]
    return first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
