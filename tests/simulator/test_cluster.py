"""Whole simulated clusters: nothing is lost, nothing is left, and the same seed does the same."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from twinpool.core.errors import SpecError
from twinpool.core.messages import Role
from twinpool.model.step import StepPlan
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.cluster import simulate
from twinpool.simulator.decode_rows import DecodeRows
from twinpool.simulator.event_log import EventLog
from twinpool.simulator.observer import Gauge, Observer
from twinpool.simulator.outcome import Ending
from twinpool.simulator.scenario import Fault, FaultKind, PrefixCache, SimulatedWorker
from twinpool.simulator.trace import TraceRequest
from twinpool.simulator.worker import WorkerProcess

from .builders import kind, scenario
from .cluster_worlds import FORM, Seen, assert_settled, draw_world, watch

LATE_S = 5_000.0
ROOT = Path(__file__).resolve().parents[2]
CROWDED = (3, 4, 18)  # see the test that says what happens there
PAIRED = PlacementSettings(policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS)


def assert_world_settles(seed: int, *, is_crowded: bool = False) -> Seen:
    seen, cluster = watch(*draw_world(seed, is_crowded=is_crowded), LATE_S)
    assert_settled(seen, cluster)
    return seen


def digest(world: int, **changes: object) -> str:
    settings, trace = draw_world(world)
    log = EventLog()
    simulate(replace(settings, **changes), trace, [log], LATE_S)  # type: ignore[arg-type]
    return log.hexdigest()


# --- conservation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_every_request_ends_once_and_leaves_nothing(seed: int):
    assert_world_settles(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", CROWDED)
def test_it_does_so_where_forecasts_go_wrong(seed: int):
    assert_world_settles(seed, is_crowded=True)


@pytest.mark.slow
def test_it_does_so_in_more_worlds():
    for seed in range(10, 40):
        assert_world_settles(seed, is_crowded=seed % 4 == 0)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_it_does_so_in_thousands_of_worlds():
    for seed in range(100, 4100):
        assert_world_settles(seed, is_crowded=seed % 4 == 0)


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What workers did with attempts that they gave up."""
    done: list[str] = []
    preempted, demote = WorkerProcess.preempted, WorkerProcess.demote

    def note_preempted(self: WorkerProcess, attempt: Attempt, num_said: int) -> None:
        done.append("preempted")
        preempted(self, attempt, num_said)

    def note_demote(self: WorkerProcess, attempt: Attempt) -> None:
        done.append("demoted")
        demote(self, attempt)

    monkeypatch.setattr(WorkerProcess, "preempted", note_preempted)
    monkeypatch.setattr(WorkerProcess, "demote", note_demote)
    return done


@pytest.mark.slow
def test_these_worlds_preempt_demote_retry_refuse_and_share(given_up: list[str]):
    seen = [assert_world_settles(seed) for seed in (1, 3, 5)]
    seen += [assert_world_settles(seed, is_crowded=True) for seed in CROWDED]
    assert set(given_up) == {"preempted", "demoted"}
    outcomes = [outcome for one in seen for outcome in one.outcomes.values()]
    assert {outcome.ending for outcome in outcomes} >= {Ending.COMPLETED, Ending.REJECTED}
    assert any(outcome.attempts > 1 and outcome.ending is Ending.COMPLETED for outcome in outcomes)
    assert any(outcome.cached_tokens for outcome in outcomes)
    assert any(what == "crashed" for one in seen for _, _, what in one.happenings)


# --- determinism --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 8))])
def test_the_same_seed_does_the_same_bit_for_bit(seed: int):
    assert digest(seed) == digest(seed)


@pytest.mark.slow
def test_it_does_the_same_in_another_process_with_other_hashes():
    code = (
        "from tests.simulator.test_cluster import digest\n"
        "print(*(digest(world) for world in range(6)))"
    )  # fmt: skip
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout.split()
        for hashes in ("1", "2")
    ]
    assert found[0] == found[1] == [digest(world) for world in range(6)]


def test_another_seed_draws_other_noise_and_without_noise_seeds_do_not_matter():
    assert digest(5, step_noise=0.1, seed=1) != digest(5, step_noise=0.1, seed=2)
    assert digest(5, step_noise=0.0, seed=1) == digest(5, step_noise=0.0, seed=2)


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_cluster_that_decides_before_each_step_does_the_same(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Where routes do not depend on loads, which are told less often where steps go in one go."""
    settings, trace = draw_world(seed)
    roomy = tuple(replace(worker, kind=replace(worker.kind, num_blocks=10_000)) for worker in settings.workers)
    placement = replace(
        settings.placement, policy=Policy.ROUND_ROBIN, mixed_pool=False, stale_s=float("inf"),
        max_waiting_prefill_tokens=10**9,
    )  # fmt: skip
    calm = replace(settings, workers=roomy, placement=placement, step_noise=0.0, faults=settings.faults[:1])
    in_goes, _ = watch(calm, trace, LATE_S)
    decide = DecodeRows.decide

    def decide_for_one_step(rows: DecodeRows, *arguments: object, **named: object) -> StepPlan:
        return replace(decide(rows, *arguments, **named), repeat=1)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodeRows, "decide", decide_for_one_step)
    one_by_one, _ = watch(calm, trace, LATE_S)
    for index, outcome in one_by_one.outcomes.items():
        other = in_goes.outcomes[index]
        for name in ("first_token_s", "end_s", "handoff_s", "wire_s", "exposed_s", "queued_s", "prefill_s"):
            assert getattr(other, name) == pytest.approx(getattr(outcome, name), abs=1e-7), f"{name} of {index}"
        assert (other.ending, other.attempts, other.num_tokens) == (
            outcome.ending, outcome.attempts, outcome.num_tokens,
        )  # fmt: skip
    if not any(what == "crashed" for _, _, what in in_goes.happenings):  # the steps that it breaks off are not told
        assert sum(steps.num_steps for steps in in_goes.steps) == len(one_by_one.steps)
    assert len(in_goes.steps) < len(one_by_one.steps)


# --- gateways and messages ----------------------------------------------------------------------------------------


def test_gateways_do_not_know_of_each_others_orders():
    workers = tuple(SimulatedWorker(f"w{place}", Role.PREFILL, kind()) for place in range(2))
    trace = [TraceRequest(0.0, 100, 1), TraceRequest(0.0, 100, 1)]

    def chosen(num_gateways: int) -> list[int | None]:
        seen, _ = watch(scenario(workers=workers, placement=PAIRED, num_gateways=num_gateways), trace)
        return [outcome.prefill_worker for _, outcome in sorted(seen.outcomes.items())]

    assert chosen(1) == [0, 1]
    assert chosen(2) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_messages_may_take_no_time_and_each_takes_what_is_said(seed: int):
    settings, trace = draw_world(seed)
    seen, cluster = watch(replace(settings, message_s=0.0), trace, LATE_S)
    assert_settled(seen, cluster)


def test_a_message_each_way_is_what_a_free_cluster_adds_to_the_prefill():
    ttfts = []
    for message_s in (0.0, 0.001, 0.01, 0.1):
        seen, _ = watch(scenario(placement=PAIRED, message_s=message_s), [TraceRequest(1.0, 100, 5)])
        ttfts.append(seen.outcomes[0].ttft_s)
    free_s = ttfts[0]
    assert free_s == pytest.approx(kind().truth.seconds(100.0, 100.0**2, 0.0, 0.0))
    assert ttfts == pytest.approx([free_s, free_s + 0.002, free_s + 0.02, free_s + 0.2])


# --- the run ------------------------------------------------------------------------------------------------------


def test_what_still_runs_when_time_is_up_is_told_as_cut():
    seen, _ = watch(scenario(placement=PAIRED), [TraceRequest(0.0, 16, 2), TraceRequest(0.0, 16, 1000)], until_s=1.0)
    assert [seen.outcomes[index].ending for index in (0, 1)] == [Ending.COMPLETED, Ending.CUT]
    cut = seen.outcomes[1]
    assert (cut.end_s, cut.num_tokens, cut.attempts) == (1.0, 1, 1)  # that it decodes is told when it ends


def test_there_is_a_gauge_each_second_until_the_last_request_has_ended():
    trace = [TraceRequest(0.0, 16, 400), TraceRequest(0.5, 16, 400)]
    seen, _ = watch(scenario(placement=PAIRED), trace)
    ended_s = max(outcome.end_s for outcome in seen.outcomes.values())
    assert [(gauge.at_s, gauge.num) for gauge in seen.gauges] == [(1.0 + n, 1) for n in range(int(ended_s))]
    assert len(seen.gauges) > 1
    assert all(gauge.in_flight for gauge in seen.gauges)


def test_one_gauge_stands_for_all_seconds_without_a_request():
    trace = [TraceRequest(at_s, 16, 2) for at_s in (0.0, 3.5, 1e7 + 0.25)]
    seen, _ = watch(scenario(placement=PAIRED), trace)
    assert [(gauge.at_s, gauge.num) for gauge in seen.gauges] == [(3.5, 3), (1e7 + 0.25, 1e7 - 3)]
    assert {gauge.in_flight for gauge in seen.gauges} == {0}


def test_an_empty_trace_ends_at_once():
    seen, cluster = watch(scenario(), [])
    assert_settled(seen, cluster)
    assert seen.num_offered == 0


def test_a_class_of_goals_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match="request 1 of the trace is of class gold; there are default"):
        watch(scenario(), [TraceRequest(0.0, 1, 1), TraceRequest(0.0, 1, 1, goal_class="gold")])


def test_pieces_of_another_size_than_the_scenarios_are_refused_where_they_matter():
    trace = [TraceRequest(0.0, 100, 1, prefix_hashes=(1, 2), hash_tokens=32)]
    shares = scenario(prefix_cache=PrefixCache.HASHES, hash_tokens=64)
    with pytest.raises(SpecError, match="pieces of 32 tokens, where 64 were expected"):
        watch(shares, trace)
    seen, _ = watch(replace(shares, prefix_cache=PrefixCache.OFF), trace)
    assert len(seen.completed) == 1


def test_pieces_that_blocks_do_not_divide_are_refused():
    with pytest.raises(SpecError, match=r"kv.block_tokens: .* pieces of 40 tokens, which blocks of 16"):
        watch(scenario(prefix_cache=PrefixCache.HASHES, hash_tokens=40), [])


def test_a_fault_of_no_worker_is_refused():
    with pytest.raises(SpecError, match="fault: no worker w9; workers: prefill-0, decode-0"):
        watch(scenario(faults=(Fault(FaultKind.CRASH, "w9", 1.0),)), [])


# --- memory -------------------------------------------------------------------------------------------------------


class Memory(Observer):
    """The most blocks of memory that Python held at a gauge."""

    def __init__(self) -> None:
        self.most_blocks = 0

    def gauged(self, gauge: Gauge) -> None:
        self.most_blocks = max(self.most_blocks, sys.getallocatedblocks())


def _stream(num_requests: int) -> Iterator[TraceRequest]:
    for index in range(num_requests):
        yield TraceRequest(index * 0.05, 50 + index * 37 % 200, 2 + index % 7)


def _most_blocks(num_requests: int) -> int:
    gc.collect()
    before, memory = sys.getallocatedblocks(), Memory()
    simulate(scenario(kind=kind(truth=FORM, num_blocks=1000), placement=PAIRED), _stream(num_requests), [memory])
    return memory.most_blocks - before


@pytest.mark.slow
def test_four_times_the_requests_take_no_more_memory():
    _most_blocks(1500)  # what is made once, as caches of tokens
    assert _most_blocks(6000) < _most_blocks(1500) + 1000  # a sixth of a block for each of the requests between
