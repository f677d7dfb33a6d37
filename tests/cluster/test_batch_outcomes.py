"""Whatever becomes of one line of a batch is that line's alone: no exception, refusal or wait ends the others' run."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.cluster.batch_files import by_id, completion
from tests.cluster.batch_runs import in_a_loop, put
from twinpool.client.client import AsyncClient
from twinpool.client.results import Choice, GenerationResult, Timings, TokenLogprob, Usage
from twinpool.cluster.batch import line as line_module
from twinpool.cluster.batch.input_file import scan_input
from twinpool.cluster.batch.output_file import OutputFile
from twinpool.cluster.batch.retry import MAX_LEFT, MAX_TRIES
from twinpool.cluster.batch.run import BatchRun, GivenUp, RunSettings
from twinpool.cluster.batch.tally import Tally, start_tally
from twinpool.cluster.openai_bodies import Ask, Endpoint, read_body
from twinpool.core.errors import Overloaded
from twinpool.core.messages import FinishReason

NOWHERE = ["127.0.0.1:1"]
FULL = Overloaded("no decode worker has blocks for the whole answer", 0.0)
TIMINGS = Timings("p", "d", *(0.0,) * 5, 0, 0.0, 0.0, 1, "")


def result(*logprobs: TokenLogprob) -> GenerationResult:
    choice = Choice(0, "x", (5,), FinishReason.STOP, logprobs)
    return GenerationResult("x", (5,), FinishReason.STOP, Usage(1, 1, 0), TIMINGS, "r", logprobs, (choice,))


Generate = Callable[[Ask], Awaitable[GenerationResult]]


class FakedRun(BatchRun):
    """Asks a function instead of a cluster."""

    generate: Generate

    async def _generate(self, client: AsyncClient, ask: Ask) -> GenerationResult:
        return await self.generate(ask)


async def run(folder: Path, generate: Generate, concurrency: int = 1, patience_s: float = 300.0) -> Tally:
    batch = scan_input(folder / "in")
    with OutputFile(folder / "out", batch.keys) as output:
        tally = start_tally(batch.keys, output.answered, time.monotonic())
        settings = RunSettings(concurrency=concurrency, patience_s=patience_s)
        one = FakedRun(batch.lines(without=output.answered), output, tally, settings)
        one.generate = generate
        await one.answer_all(NOWHERE)
    return tally


async def at_once(ask: Ask) -> GenerationResult:
    return result()


@in_a_loop
async def test_a_line_of_thousands_of_digits_is_answered_with_its_problem(tmp_path: Path) -> None:
    put(tmp_path, [completion("long", logit_bias={"9" * 5000: 1}), completion("b")])
    tally = await run(tmp_path, at_once)
    answers = by_id(tmp_path / "out")
    assert (answers["long"]["error"]["code"], answers["long"]["error"]["param"]) == ("invalid_request", "logit_bias")
    assert answers["b"]["error"] is None
    assert (tally.done, tally.failed) == (2, 1)


def test_lines_that_our_own_code_stumbles_over_are_left_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(endpoint: Endpoint, body: object) -> Ask:
        ask = read_body(endpoint, body)
        if ask.prompt == "odd":
            raise KeyError("nobody expected")
        return ask

    monkeypatch.setattr(line_module, "read_body", stumble)
    put(tmp_path, [*(completion(f"o{i}", "odd") for i in range(MAX_LEFT + 1)), completion("good")])
    tally = asyncio.run(run(tmp_path, at_once))
    assert set(by_id(tmp_path / "out")) == {"good"}
    assert len(tally.unfinished) == MAX_LEFT + 1
    assert tally.unfinished["o0"] == "Stumbled: KeyError: 'nobody expected'"
    assert "line 1: unexpected KeyError" in caplog.text
    monkeypatch.undo()
    assert asyncio.run(run(tmp_path, at_once)).exit_code == 0
    assert len(by_id(tmp_path / "out")) == MAX_LEFT + 2


@pytest.mark.slow  # waits between tries
def test_an_exception_over_one_answer_is_that_lines_alone_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[object] = []

    async def generate(ask: Ask) -> GenerationResult:
        tried.append(ask.prompt)
        if ask.prompt == "always" or (ask.prompt == "once" and tried.count("once") == 1):
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return result()

    put(tmp_path, [completion("a", "always"), completion("b", "once"), completion("c")])
    tally = asyncio.run(run(tmp_path, generate))
    assert set(by_id(tmp_path / "out")) == {"b", "c"}
    assert tried.count("always") == MAX_TRIES
    assert list(tally.unfinished) == ["a"]
    assert tally.unfinished["a"].startswith("Stumbled: UnicodeEncodeError")
    assert "Traceback" in caplog.text


@in_a_loop
async def test_an_answer_without_numbers_is_written_as_json(tmp_path: Path) -> None:
    async def generate(ask: Ask) -> GenerationResult:
        return result(TokenLogprob(5, float("nan"), b"x"))

    put(tmp_path, [completion("a", logprobs=0)])
    assert (await run(tmp_path, generate)).exit_code == 0
    assert b"NaN" not in (tmp_path / "out").read_bytes()
    logprobs = by_id(tmp_path / "out")["a"]["response"]["body"]["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None]


@pytest.mark.slow  # longer than the patience
@in_a_loop
async def test_patience_does_not_end_while_another_request_is_being_answered(tmp_path: Path) -> None:
    answered: list[object] = []

    async def generate(ask: Ask) -> GenerationResult:
        if ask.prompt == "long":
            await asyncio.sleep(1.0)
        elif not answered:
            raise FULL
        answered.append(ask.prompt)
        return result()

    put(tmp_path, [completion("a", "long"), completion("b", "held")])
    tally = await run(tmp_path, generate, concurrency=2, patience_s=0.1)
    assert answered == ["long", "held"]
    assert tally.exit_code == 0


@pytest.mark.slow
@in_a_loop
async def test_patience_ends_when_the_request_that_was_waited_for_is_refused_too(tmp_path: Path) -> None:
    async def generate(ask: Ask) -> GenerationResult:
        await asyncio.sleep(0.5 if ask.prompt == "long" else 0.0)
        raise FULL

    put(tmp_path, [completion("a", "long"), completion("b", "held")])
    with pytest.raises(GivenUp, match=r"no request for 0\.1 s: overloaded"):
        await run(tmp_path, generate, concurrency=2, patience_s=0.1)
