"""Simulated gateways: the live router's decisions, and what becomes of requests."""

import pytest

from twinpool.cluster import controller, dispatch
from twinpool.core.messages import Goal, Role
from twinpool.router import health
from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import LinearForm
from twinpool.router.route import Disaggregate, OnPrefillLoss, PlacementSettings, Policy
from twinpool.simulator import caretaker, gateway
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.scenario import Fault, FaultKind, GoalClass, Scenario, SimulatedWorker
from twinpool.simulator.trace import TraceRequest

from .builders import GOAL, kind, scenario
from .cluster_worlds import assert_settled, watch

PAIRED = PlacementSettings(policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS)
STEADY = kind(truth=LinearForm(0.1, 0.0, 0.0, 0.01, 0.0, 0.0), num_blocks=1000)  # a step of prefill takes 0.1 s


def alone(**more: object) -> Scenario:
    """One prefill worker whose queue takes one prompt, for requests of a single token."""
    placement = PlacementSettings(policy=Policy.LEAST_LOADED, max_waiting_prefill_tokens=1)
    worker = SimulatedWorker("p", Role.PREFILL, STEADY)
    return scenario(**({"workers": (worker,), "placement": placement, "message_s": 0.0} | more))


def run(settings: Scenario, *trace: TraceRequest) -> list[Outcome]:
    seen, cluster = watch(settings, list(trace))
    assert_settled(seen, cluster)
    return [outcome for _, outcome in sorted(seen.outcomes.items())]


def test_it_asks_the_live_gateways_policies():
    for name in ("Ledger", "WaitingRoom", "ViewTable", "Placing", "rejection"):
        assert getattr(gateway, name) is getattr(dispatch, name)
    assert caretaker.health.decide is controller.decide is health.decide


def test_who_came_first_goes_first_within_a_priority():
    goals = {"default": GoalClass(GOAL), "batch": GoalClass(GOAL, priority=1)}
    classes = ("default", "batch", "batch", "default", "default")
    outcomes = run(
        alone(goals=goals), *(TraceRequest(place * 1e-3, 10, 1, goal_class=name) for place, name in enumerate(classes))
    )  # fmt: skip
    assert sorted(range(5), key=lambda place: outcomes[place].end_s) == [0, 3, 4, 1, 2]


def test_more_than_may_wait_are_refused_at_once():
    outcomes = run(
        alone(admission=AdmissionSettings(max_queued=2)), *(TraceRequest(0.01, 10, 1) for _ in range(5))
    )  # fmt: skip
    refused = [outcome for outcome in outcomes if outcome.ending is Ending.REJECTED]
    assert [outcome.index for outcome in refused] == [3, 4]
    assert all(outcome.end_s == outcome.arrival_s and "queue is full" in outcome.why for outcome in refused)


def test_those_whose_deadline_comes_while_they_wait_are_given_up_within_a_second():
    goals = {"default": GoalClass(GOAL, deadline_s=0.5)}
    outcomes = run(alone(goals=goals), *(TraceRequest(0.0, 10, 1) for _ in range(12)))
    waited = [outcome for outcome in outcomes if outcome.ending is Ending.REJECTED]
    assert 4 <= 12 - len(waited) <= 12
    assert all(0.5 <= outcome.end_s <= 1.5 and "deadline exceeded" in outcome.why for outcome in waited)
    assert all(outcome.held_s == outcome.end_s for outcome in waited)


def test_what_no_worker_can_ever_hold_is_refused_at_once():
    small = kind(num_blocks=4)
    workers = (SimulatedWorker("p", Role.PREFILL, STEADY), SimulatedWorker("d", Role.DECODE, small))
    outcomes = run(scenario(workers=workers, placement=PAIRED), TraceRequest(1.0, 40, 20), TraceRequest(1.0, 40, 30))
    assert [outcome.ending for outcome in outcomes] == [Ending.COMPLETED, Ending.REJECTED]
    assert outcomes[1].end_s == 1.0
    assert "more KV blocks than any worker has" in outcomes[1].why


def test_without_prefill_workers_requests_fail_or_are_local_as_the_knob_says():
    decode = (SimulatedWorker("d", Role.DECODE, STEADY),)

    def ending(knob: OnPrefillLoss) -> Ending:
        settings = PlacementSettings(policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS, on_prefill_loss=knob)
        return run(scenario(workers=decode, placement=settings), TraceRequest(0.0, 10, 5))[0].ending

    assert ending(OnPrefillLoss.LOCAL) is Ending.COMPLETED
    assert ending(OnPrefillLoss.FAIL) is Ending.REJECTED


def test_the_first_token_of_an_attempt_that_was_given_up_is_nobodys():
    """The decode worker is known to be dead before the prefill's token comes, which is of the old attempt then."""
    workers = (
        SimulatedWorker("p", Role.PREFILL, STEADY),
        SimulatedWorker("d0", Role.DECODE, STEADY),
        SimulatedWorker("d1", Role.DECODE, STEADY),
    )
    faults = (Fault(FaultKind.CRASH, "d0", 0.9),)
    settings = scenario(workers=workers, placement=PAIRED, message_s=1.0, faults=faults)
    (outcome,) = run(settings, TraceRequest(0.0, 10, 5))
    assert outcome.attempts == 2
    assert outcome.ttft_s == pytest.approx(1.9 + 1.0 + 0.1 + 1.0)  # not the 2.1 s of the first attempt
    assert outcome.first_token_s is not None
    assert outcome.queued_s + outcome.prefill_s == pytest.approx(0.1)


def test_a_full_prefill_queue_borrows_a_decode_worker_which_goes_home_when_idle():
    placement = PlacementSettings(
        policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS, mixed_pool=True, max_waiting_prefill_tokens=100
    )
    workers = tuple(SimulatedWorker(f"{role}{n}", role, STEADY) for role in (Role.PREFILL, Role.DECODE) for n in (0, 1))
    settings = scenario(workers=workers, placement=placement)
    seen, cluster = watch(settings, [TraceRequest(0.0, 100, 3)] * 12)
    assert_settled(seen, cluster)
    assert {outcome.prefill_worker for outcome in seen.outcomes.values()} == {0, 1, 2, 3}
    assert [worker.role for worker in cluster.gateways[0].table.workers()] == [
        *(Role.DECODE, Role.DECODE, Role.PREFILL, Role.PREFILL)  # in order of their ids
    ]
    without, _ = watch(
        scenario(workers=workers, placement=PlacementSettings(
            policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS, max_waiting_prefill_tokens=100
        )),
        [TraceRequest(0.0, 100, 3)] * 12,
    )  # fmt: skip
    assert {outcome.prefill_worker for outcome in without.outcomes.values()} == {0, 1}
    assert max(o.end_s for o in seen.outcomes.values()) < max(o.end_s for o in without.outcomes.values())


def test_goals_are_those_of_the_requests_class():
    goals = {"default": GoalClass(GOAL), "tight": GoalClass(Goal(0.05, 0.1))}
    outcomes = run(alone(goals=goals), TraceRequest(0.0, 10, 1), TraceRequest(1.0, 10, 1, goal_class="tight"))
    assert [(outcome.goal.ttft_s, outcome.met) for outcome in outcomes] == [(1.0, True), (0.05, False)]


def test_limits_are_the_traces_or_else_the_answers_lengths():
    """A limit keeps blocks from others: with it, one request at a time fits; without, all three do at once."""
    small = kind(truth=LinearForm(0.1, 0.0, 0.0, 0.01, 0.0, 0.0), num_blocks=12)
    workers = (SimulatedWorker("p", Role.PREFILL, STEADY), SimulatedWorker("d", Role.DECODE, small))

    def held(limit: int) -> int:
        settings = scenario(workers=workers, placement=PAIRED)
        outcomes = run(settings, *(TraceRequest(place * 0.01, 16, 20, limit) for place in range(3)))
        return sum(outcome.held_s > 0.05 for outcome in outcomes)

    assert (held(0), held(150)) == (0, 2)
