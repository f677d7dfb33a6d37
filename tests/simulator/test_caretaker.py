"""Faults that befall simulated workers, and what follows."""

import pytest

from twinpool.core.messages import Role
from twinpool.router.health import GiveUp, HealthSettings, Observation, Restart, decide
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.outcome import Ending
from twinpool.simulator.scenario import Fault, FaultKind, Scenario, SimulatedWorker
from twinpool.simulator.trace import TraceRequest

from .builders import kind, scenario
from .cluster_worlds import FORM, assert_settled, watch

PAIRED = PlacementSettings(policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS)
SLOW_KIND = kind(truth=FORM, num_blocks=1000)


def cluster(*faults: Fault, decode: int = 1, prefill: int = 1, **more: object) -> Scenario:
    workers = tuple(SimulatedWorker(f"p{number}", Role.PREFILL, SLOW_KIND) for number in range(prefill))
    workers += tuple(SimulatedWorker(f"d{number}", Role.DECODE, SLOW_KIND) for number in range(decode))
    return scenario(**({"workers": workers, "placement": PAIRED, "faults": faults, "start_s": 5.0} | more))


def crash(worker_id: str, at_s: float) -> Fault:
    return Fault(FaultKind.CRASH, worker_id, at_s)


def starts(*, crashes_s: list[float], start_s: float = 5.0, message_s: float = 5e-4) -> list[float]:
    """When router/health.py has a worker running again."""
    found, started_s, restarts, up_from = [], 0.0, 0, 0.0
    for at_s in crashes_s:
        if at_s < up_from:
            continue  # it is down already
        noticed_s = at_s + message_s
        seen = Observation("d0", True, True, 0.0, noticed_s - started_s, restarts)
        (decision,) = decide([seen], HealthSettings())
        if isinstance(decision, GiveUp):
            break
        assert isinstance(decision, Restart)
        restarts = decision.restarts
        started_s = up_from = noticed_s + decision.after_s + start_s
        found.append(started_s)
    return found


@pytest.mark.parametrize(
    "crashes_s",
    [
        [1.0],
        [1.0, 2.0, 10.0, 20.0],  # the second while it is down
        [1.0, 100.0, 110.0],  # a clean record between
        [8.0 * number for number in range(1, 20)],  # until it is given up
    ],
)
def test_a_crashed_worker_is_started_again_when_health_decides(crashes_s: list[float]):
    late = [TraceRequest(at_s, 10, 1) for at_s in (0.0, 400.0)]
    seen, _ = watch(cluster(*(crash("d0", at_s) for at_s in crashes_s)), late)
    started = [at_s for at_s, _, what in seen.happenings if what == "started"]
    assert started == pytest.approx(starts(crashes_s=crashes_s))
    assert len(started) <= HealthSettings().max_restarts


def test_a_request_whose_decode_worker_dies_goes_on_from_the_tokens_it_had():
    calm, _ = watch(cluster(decode=2), [TraceRequest(0.0, 100, 200)])
    seen, left = watch(cluster(crash("d0", 2.0), decode=2), [TraceRequest(0.0, 100, 200)])
    assert_settled(seen, left)
    outcome, undisturbed = seen.outcomes[0], calm.outcomes[0]
    assert (undisturbed.decode_worker, outcome.decode_worker) == (1, 2)
    assert (outcome.attempts, outcome.num_tokens) == (2, 200)
    assert outcome.first_token_s == undisturbed.first_token_s
    lost_s = outcome.end_s - undisturbed.end_s
    again_s = FORM.seconds(200.0, 0.0, 0.0, 0.0)  # at most what a prefill of prompt and answer takes, and messages
    assert 0 < lost_s < again_s + 0.03


def test_a_request_that_decodes_does_without_the_worker_that_prefilled_it():
    seen, _ = watch(cluster(crash("p0", 2.0)), [TraceRequest(0.0, 100, 200)])
    calm, _ = watch(cluster(), [TraceRequest(0.0, 100, 200)])
    assert seen.outcomes[0].attempts == 1
    assert seen.outcomes[0].end_s == pytest.approx(calm.outcomes[0].end_s)


@pytest.mark.parametrize("at_s", [0.005, 0.03, 0.0385])
def test_a_request_whose_prefill_worker_dies_before_its_handoff_is_prefilled_elsewhere(at_s: float):
    """While its prompt is computed, while its KV is on the wire, and before the first token from the target."""
    slow_wire = kind(truth=FORM, num_blocks=1000, kv_token_bytes=160 * 1024, nic_bytes_per_s=2e9)
    workers = (
        SimulatedWorker("p0", Role.PREFILL, slow_wire),
        SimulatedWorker("p1", Role.PREFILL, slow_wire),
        SimulatedWorker("d0", Role.DECODE, slow_wire),
    )
    seen, left = watch(cluster(crash("p0", at_s), workers=workers), [TraceRequest(0.0, 100, 20)])
    assert_settled(seen, left)
    assert (seen.outcomes[0].attempts, seen.outcomes[0].prefill_worker) == (2, 1)


def test_a_request_that_loses_worker_after_worker_fails_after_its_attempts():
    faults = [crash("d0", 1.0), crash("d1", 3.0), crash("d2", 5.0)]
    seen, left = watch(cluster(*faults, decode=3, start_s=1000.0, max_attempts=3), [TraceRequest(0.0, 100, 400)])
    assert_settled(seen, left)
    outcome = seen.outcomes[0]
    assert outcome.ending is Ending.FAILED
    assert "3 attempts failed, the last with worker_lost" in outcome.why
    assert 2 < outcome.num_tokens < 400


def test_nobody_is_sent_to_a_draining_worker_and_what_it_has_goes_on():
    faults = (Fault(FaultKind.DRAIN, "d0", 1.0, duration_s=10.0),)
    trace = [TraceRequest(at_s, 100, 200) for at_s in (0.0, 2.0, 3.0, 12.0)]
    seen, left = watch(cluster(*faults, decode=2), trace)
    assert_settled(seen, left)
    assert [seen.outcomes[index].decode_worker for index in range(4)] == [1, 2, 2, 1]
    assert {outcome.attempts for outcome in seen.outcomes.values()} == {1}
    assert seen.happenings == [(1.0, 1, "draining"), (11.0, 1, "ready")]


def test_a_slow_worker_takes_so_many_times_as_long_from_the_next_step_on():
    factor, begin_s, end_s = 3.0, 1.0, 2.5
    faults = (Fault(FaultKind.SLOW, "d0", begin_s, end_s - begin_s, factor),)
    seen, _ = watch(cluster(*faults), [TraceRequest(0.0, 100, 150)])
    decoding = [steps for steps in seen.steps if steps.worker == 1]
    assert sum(steps.num_steps for steps in decoding) == 149
    for steps in decoding:
        is_slow = begin_s <= steps.started_s < end_s
        undisturbed_s = FORM.decode_seconds(float(steps.context_tokens + 1), 1, steps.num_steps)
        took_s = steps.ended_s - steps.started_s
        assert took_s == pytest.approx(undisturbed_s * (factor if is_slow else 1.0))
    assert any(begin_s <= steps.started_s < end_s for steps in decoding)
    assert decoding[-1].started_s > end_s


def test_a_worker_of_half_the_speed_takes_twice_as_long():
    workers = (SimulatedWorker("p0", Role.PREFILL, SLOW_KIND, speed=0.5),)
    seen, _ = watch(scenario(workers=workers, placement=PAIRED), [TraceRequest(0.0, 100, 1)])
    assert seen.outcomes[0].prefill_s == pytest.approx(2 * FORM.seconds(100.0, 1e4, 0.0, 0.0))


def test_a_fault_of_a_worker_that_is_down_changes_nothing():
    faults = (crash("d0", 1.0), crash("d0", 2.0), Fault(FaultKind.DRAIN, "d0", 2.0), Fault(FaultKind.SLOW, "d0", 2.0))
    seen, left = watch(cluster(*faults), [TraceRequest(10.0, 100, 20)])
    assert_settled(seen, left)
    assert [what for _, _, what in seen.happenings if what in ("crashed", "started")] == ["crashed", "started"]
    assert seen.outcomes[0].ending is Ending.COMPLETED
    calm, _ = watch(cluster(), [TraceRequest(10.0, 100, 20)])
    assert seen.outcomes[0].e2e_s == pytest.approx(calm.outcomes[0].e2e_s)  # a new process is as fast as any


# --- several faults at a time, and what a crash leaves ------------------------------------------------------------


def test_of_faults_that_overlap_each_ends_alone_and_slowness_multiplies():
    faults = (
        Fault(FaultKind.SLOW, "d0", 1.0, 3.0, 2.0),
        Fault(FaultKind.SLOW, "d0", 2.0, 1.0, 3.0),
        Fault(FaultKind.DRAIN, "d1", 1.0, 3.0),
        Fault(FaultKind.DRAIN, "d1", 2.0, 1.0),
    )
    seen, _ = watch(cluster(*faults, decode=2), [TraceRequest(0.0, 100, 400)])
    assert [what for _, worker, what in seen.happenings if worker == 1] == ["slow 2", "slow 6", "slow 2", "slow 1"]
    drained = [(at_s, what) for at_s, worker, what in seen.happenings if worker == 2]
    assert drained == [(1.0, "draining"), (4.0, "ready")]
    for steps in (steps for steps in seen.steps if steps.worker == 1):
        slowness = 6.0 if 2.0 <= steps.started_s < 3.0 else 2.0 if 1.0 <= steps.started_s < 4.0 else 1.0
        undisturbed_s = FORM.decode_seconds(float(steps.context_tokens + 1), 1, steps.num_steps)
        assert steps.ended_s - steps.started_s == pytest.approx(undisturbed_s * slowness)


def test_a_worker_that_is_started_again_is_still_under_faults_that_have_not_ended():
    faults = (
        Fault(FaultKind.DRAIN, "d0", 0.5, duration_s=30.0),
        crash("d0", 1.0),
        crash("d1", 1.0),
        Fault(FaultKind.SLOW, "d1", 0.5, duration_s=1000.0, factor=4.0),
    )
    trace = [TraceRequest(at_s, 100, 50) for at_s in (20.0, 40.0)]
    seen, left = watch(cluster(*faults, decode=2, start_s=5.0), trace)
    assert_settled(seen, left)
    assert [what for _, worker, what in seen.happenings if worker == 1] == ["draining", "crashed", "started", "ready"]
    assert [seen.outcomes[index].decode_worker for index in (0, 1)] == [2, 1]
    (first, *_) = [steps for steps in seen.steps if steps.worker == 2]
    assert first.ended_s - first.started_s == pytest.approx(4 * FORM.decode_seconds(101.0, 1, first.num_steps))


@pytest.mark.parametrize("at_s", [0.8, 0.02])
def test_the_steps_that_a_crash_breaks_off_are_told(at_s: float):
    """While it decodes, and while it prefills."""
    place = 1 if at_s > 0.1 else 0
    seen, _ = watch(cluster(crash("d0" if place else "p0", at_s)), [TraceRequest(0.0, 100, 200)])
    *whole, broken = [steps for steps in seen.steps if steps.worker == place and steps.ended_s <= at_s]
    assert (broken.num_steps, broken.ended_s) == (0, at_s)
    assert (broken.batch, broken.prefill_tokens) == ((1, 0) if place else (0, 100))
    busy_s = sum(steps.ended_s - steps.started_s for steps in (*whole, broken))
    assert busy_s == pytest.approx(at_s - (*whole, broken)[0].started_s)
    said = sum(steps.num_steps for steps in whole)
    if place:
        assert broken.context_tokens == whole[0].context_tokens + said
        whole_s = FORM.decode_seconds(101.0, 1, said)
        assert busy_s - (broken.ended_s - broken.started_s) == pytest.approx(whole_s)
