"""A timed worker, and the stream to it that a gateway would have: orders go out, answers and step times come back.

Knows processes and messages; not which orders make a measurement.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from twinpool.cluster.profile.process import write_config
from twinpool.cluster.profile.rows import TimedStep
from twinpool.cluster.worker_link import WorkerLink
from twinpool.core.errors import Internal, SpecError
from twinpool.core.messages import Goal, Request, WorkerAddress, WorkerConfig
from twinpool.core.sampling import SamplingParams
from twinpool.protos.convert import address_to_proto, request_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

GATEWAY_ID = "profile"
START_TIMEOUT_S = 600.0  # large models load for minutes
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 600.0
LONGEST_LINE = 2**28
GOAL = Goal(3600.0, 3600.0)  # no worker reads it


@dataclass(slots=True)
class Answer:
    """What came back for one request; times by this process's clock."""

    sent_s: float
    new_tokens: int
    token_times_s: dict[int, float] = field(default_factory=dict)  # by place in the answer: two workers may answer
    kv_bytes: int = 0  # of its handoff
    wire_s: float = 0.0
    failure: str = ""
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)  # or is over
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


def make_request(request_id: str, prompt: Sequence[int], new_tokens: int) -> Request:
    """A greedy request for exactly so many tokens."""
    sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True, seed=0)
    return Request(request_id, 1, tuple(prompt), len(prompt), sampling, GOAL)


class Mailbox:
    """Answers of all workers, by request."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}

    def open(self, request: Request) -> Answer:
        answer = self._answers[request.request_id] = Answer(time.monotonic(), request.max_new_tokens)
        return answer

    def stepped(self, worker_id: str, output: pb.StepOutput) -> None:
        now = time.monotonic()
        for delta in output.deltas:
            if (answer := self._answers.get(delta.request_id)) is None:
                continue
            for place in range(len(delta.token_ids)):
                answer.token_times_s[delta.index + place] = now
            answer.has_begun.set()
            if delta.HasField("handoff"):
                answer.kv_bytes, answer.wire_s = delta.handoff.kv_bytes, delta.handoff.wire_s
            if len(answer.token_times_s) == answer.new_tokens:
                self._end(delta.request_id)
        for failure in output.failures:
            self._fail(failure.request_id, f"{worker_id}: {failure.reason}")

    def lost(self, address: WorkerAddress, reason: str) -> None:
        for request_id in list(self._answers):
            self._fail(request_id, f"{address.worker_id} is lost: {reason}")

    def _fail(self, request_id: str, why: str) -> None:
        if (answer := self._answers.get(request_id)) is not None:
            answer.failure = why
            self._end(request_id)

    def _end(self, request_id: str) -> None:
        answer = self._answers.pop(request_id)
        answer.has_begun.set()
        answer.is_over.set()


async def wait_for(answers: Sequence[Answer], *, first_token: bool = False) -> None:
    """Return when all are complete, or have their first token. Raises Internal when one never will."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            for answer in answers:
                await (answer.has_begun if first_token else answer.is_over).wait()
    except TimeoutError:
        raise Internal(f"a worker did not answer within {ANSWER_TIMEOUT_S:g} s") from None
    for answer in answers:
        if answer.failure:
            raise Internal(answer.failure)


class Probe:
    """A worker that serves, and is timed."""

    def __init__(self, process: asyncio.subprocess.Process, config: WorkerConfig, mailbox: Mailbox) -> None:
        self._process = process
        self.config = config
        self._mailbox = mailbox
        self._greeted: asyncio.Future[pb.WorkerHello] = asyncio.get_running_loop().create_future()
        self._link: WorkerLink | None = None
        self.address = WorkerAddress("", "", "")

    async def attach(self) -> None:
        """Wait until the worker serves, then call it.

        Raises:
            SpecError: it cannot serve as configured.
        """
        told = await self._hear(START_TIMEOUT_S)
        if "error" in told:
            raise SpecError(told["error"])
        self.address = WorkerAddress(**told["address"])
        self._link = WorkerLink(
            self.address,
            GATEWAY_ID,
            self.config.cluster_secret,
            on_hello=self._greeted.set_result,
            on_step=self._mailbox.stepped,
            on_lost=self._lost,
        )
        self.hello = await asyncio.wait_for(self._greeted, START_TIMEOUT_S)

    def _lost(self, address: WorkerAddress, reason: str) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(Internal(f"{address.worker_id} is lost: {reason}"))
        self._mailbox.lost(address, reason)

    @property
    def total_tokens(self) -> int:
        """Tokens whose KV the worker can hold."""
        return int(self.hello.total_blocks * self.hello.block_tokens)

    def prefill(self, request: Request, target: WorkerAddress | None = None) -> Answer:
        """Order a prompt; without ``target`` the worker decodes the answer itself."""
        answer = self._mailbox.open(request)
        order = pb.PrefillOrder(request=request_to_proto(request))
        if target is not None:
            order.target.CopyFrom(address_to_proto(target))
        self._send(pb.GatewayMessage(prefill=order))
        return answer

    def reserve(self, request: Request, source: WorkerAddress) -> None:
        """Have the worker expect the request's KV; the answer is the one that ``prefill`` at the source gave."""
        order = pb.ReserveOrder(request=request_to_proto(request), source=address_to_proto(source))
        self._send(pb.GatewayMessage(reserve=order))

    def _send(self, message: pb.GatewayMessage) -> None:
        assert self._link is not None
        self._link.send(message)

    async def take_steps(self) -> list[TimedStep]:
        """The worker's steps since the last call; all of them, when it is idle."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        told = await self._hear(STOP_TIMEOUT_S)
        return [TimedStep(*step) for step in told["steps"]]

    async def _hear(self, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise Internal(f"{self.config.worker_id} said nothing for {timeout_s:g} s") from None
        if not line:
            raise Internal(f"the process of {self.config.worker_id} is gone; what it wrote above says why")
        return json.loads(line)

    async def close(self) -> None:
        """Hang up and end the process, by force if need be."""
        if self._link is not None:
            await self._link.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def probing(configs: Sequence[WorkerConfig]) -> AsyncIterator[list[Probe]]:
    """Timed workers that serve, each in a process of its own; none is left when the block ends.

    Raises:
        SpecError: one cannot serve as configured.
    """
    mailbox, probes = Mailbox(), list[Probe]()
    try:
        for config in configs:
            probes.append(await _start(config, mailbox))
        for probe in probes:
            await probe.attach()
        yield probes
    finally:
        for probe in probes:
            await probe.close()


async def _start(config: WorkerConfig, mailbox: Mailbox) -> Probe:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "twinpool.cluster.profile.process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LONGEST_LINE,
        start_new_session=True,  # Ctrl-C is this process's to answer
    )
    assert process.stdin is not None
    process.stdin.write(write_config(config))
    return Probe(process, config, mailbox)
