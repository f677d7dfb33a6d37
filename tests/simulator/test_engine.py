"""The simulated engine against the live one in virtual time, and against itself one step at a time."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from twinpool.cluster import engine as live_engine
from twinpool.decode_worker import service as live_decode
from twinpool.model.step import StepPlan
from twinpool.prefill_worker import batching as prefill_batching
from twinpool.prefill_worker import service as live_prefill
from twinpool.router.views import WorkerLoad
from twinpool.simulator import decode_rows, engine, prompt_queue
from twinpool.simulator.decode_rows import DecodeRows

from .engine_world import ALL_KINDS, THAT_DECODE, Job, LiveWorker, SimulatedWorkerAlone, Size, Told, draw_jobs

SIZES = (Size(), Size(num_blocks=45), Size(num_blocks=90, chunk_tokens=16, max_running=3), Size(parked_share=0.0))
ROOMY = Size(num_blocks=400, max_running=64)  # in which nobody waits, so that steps go on in one go
AMPLE = Size(num_blocks=4000, shares_prefixes=True)

Stepwise = Callable[[], None]


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> Stepwise:
    """Have simulated engines decide before each step, as live ones do."""
    decide = DecodeRows.decide

    def decide_for_one_step(rows: DecodeRows, *arguments: object, **named: object) -> StepPlan:
        return replace(decide(rows, *arguments, **named), repeat=1)  # type: ignore[arg-type]

    return lambda: monkeypatch.setattr(DecodeRows, "decide", decide_for_one_step)


def both(jobs: list[Job], size: Size) -> tuple[Told, Told]:
    return LiveWorker(jobs, size).run(), SimulatedWorkerAlone(jobs, size).run()


def assert_loads_agree(live: Told, simulated: Told, *leaving: str) -> None:
    """Whatever the simulated engine says of its load, the live one says at the same time."""
    nothing = dict.fromkeys(leaving, 0)
    said: dict[float, list[WorkerLoad]] = {}
    for at_s, load in live.loads:
        said.setdefault(round(at_s, 8), []).append(replace(load, **nothing))
    missing = 0
    for at_s, load in simulated.loads:
        there = said.get(round(at_s, 8))
        missing += there is None
        assert there is None or replace(load, **nothing) in there, f"at {at_s}"
    assert missing < 0.05 * len(simulated.loads)  # their times lie on both sides of a rounding


@pytest.mark.parametrize("kinds", [ALL_KINDS, THAT_DECODE])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_it_does_what_the_live_engine_does_at_the_same_time(seed: int, kinds: tuple[str, ...]):
    jobs, size = draw_jobs(seed, kinds=kinds), (*SIZES, ROOMY)[seed % 5]
    live, simulated = both(jobs, size)
    assert simulated.sorted() == live.sorted()
    assert_loads_agree(live, simulated, "peak_blocks")  # live ones forecast in the middle of what is one go here


@pytest.mark.parametrize("seed", [12, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(13, 16))])
def test_step_by_step_it_also_publishes_what_the_live_engine_publishes(seed: int, stepwise: Stepwise):
    stepwise()
    live, simulated = both(draw_jobs(seed), SIZES[seed % len(SIZES)])
    assert simulated.sorted() == live.sorted()
    assert_loads_agree(live, simulated)


def test_a_prompt_that_waits_for_blocks_starts_as_soon_as_the_forecast_lets_it():
    live, simulated = both(draw_jobs(423), Size(parked_share=0.0))  # it falls in the middle of a row of decode steps
    assert simulated.sorted() == live.sorted()


def test_these_scripts_preempt_demote_and_wait():
    told = [SimulatedWorkerAlone(draw_jobs(seed), SIZES[seed % len(SIZES)]).run() for seed in range(6)]
    assert sum(one.count("preempted") for one in told) > 0
    assert sum(one.count("demoted") for one in told) > 0
    assert len({load.cause for one in told for _, load in one.loads}) > 3


@pytest.mark.parametrize("seed", range(4))
def test_prompts_that_begin_alike_share_blocks_as_in_a_live_engine(seed: int):
    live, simulated = both(draw_jobs(seed, num_pieces=6), AMPLE)
    assert simulated.sorted() == live.sorted()
    assert_loads_agree(live, simulated, "peak_blocks")
    assert any(what.startswith("first,") and "first, 0" not in what for _, what, _ in simulated.events)


@pytest.mark.parametrize("seed", range(6))
def test_many_steps_in_one_go_are_those_steps(seed: int, stepwise: Stepwise):
    jobs, size = draw_jobs(seed, kinds=THAT_DECODE), ROOMY
    in_goes, one_by_one = SimulatedWorkerAlone(jobs, size), SimulatedWorkerAlone(jobs, size)
    told = in_goes.run().sorted()
    stepwise()
    assert told == one_by_one.run().sorted()
    assert 2 * len(in_goes.steps) < len(one_by_one.steps)
    assert sum(steps.num_steps for steps in in_goes.steps) == len(one_by_one.steps)
    assert {steps.num_steps for steps in one_by_one.steps} == {1}


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_it_does_what_the_live_engine_does_in_many_worlds():
    for seed in range(100, 2100):
        jobs, size = draw_jobs(seed, kinds=(ALL_KINDS, THAT_DECODE)[seed // len(SIZES) % 2]), SIZES[seed % len(SIZES)]
        live, simulated = both(jobs, size)
        assert simulated.sorted() == live.sorted(), f"seed {seed}"


def test_it_asks_the_live_engines_policies():
    assert engine.token_budget is live_engine.token_budget is prefill_batching.token_budget
    assert engine.spare_blocks is live_engine.spare_blocks is prefill_batching.spare_blocks
    assert decode_rows.batching is live_decode.batching
    assert decode_rows.LengthHistory is live_decode.LengthHistory
    assert decode_rows.AgeTable is live_decode.AgeTable
    assert prompt_queue.batching is live_prefill.batching
