"""What each policy chooses, and what no policy may ever choose."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.core.messages import Goal, Role
from twinpool.router.demand import Demand
from twinpool.router.placement import ANSWER_TOKENS, MARGIN, place
from twinpool.router.pricing import price, violation
from twinpool.router.route import (
    Disaggregate,
    Hold,
    HoldReason,
    OnPrefillLoss,
    PlacementSettings,
    Policy,
    Reject,
    RejectReason,
    Route,
)
from twinpool.router.view_table import ViewTable
from twinpool.router.views import ClusterView, WorkerLoad, WorkerState, WorkerView

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
DEMAND = Demand(num_tokens=100, max_new_tokens=20, goal=Goal(10.0, 1.0))
ALWAYS = Disaggregate.ALWAYS


def worker(worker_id: str, role: Role, **load: int) -> WorkerView:
    return WorkerView(worker_id, "a", role, 100, 16, load=replace(WorkerLoad(), **load))  # type: ignore[arg-type]


def view_of(*workers: WorkerView, now: float = 0.0) -> ClusterView:
    table = ViewTable()
    for each in workers:
        table.join(each, 0.0)
    return table.snapshot(now)


def chosen(demand: Demand, view: ClusterView, settings: PlacementSettings, turn: int = 0) -> tuple[str, str | None]:
    route = place(demand, view, settings, turn)
    assert isinstance(route, Route)
    assert route.why
    return route.prefill, route.decode


@pytest.mark.parametrize("policy", list(Policy))
def test_ties_go_to_the_smaller_id(policy: Policy) -> None:
    view = view_of(worker("p1", P), worker("d1", D), worker("p0", P), worker("d0", D))
    assert chosen(DEMAND, view, PlacementSettings(policy, ALWAYS)) == ("p0", "d0")


@pytest.mark.parametrize("policy", list(Policy))
def test_one_token_reserves_no_decode_worker(policy: Policy) -> None:
    view = view_of(worker("p0", P), worker("d0", D))
    assert chosen(replace(DEMAND, max_new_tokens=1), view, PlacementSettings(policy)) == ("p0", None)


@pytest.mark.parametrize("policy", list(Policy))
def test_two_mixed_workers_never_hand_over_to_themselves(policy: Policy) -> None:
    view = view_of(worker("m0", M), worker("m1", M))
    for turn in range(4):
        prefill, decode = chosen(DEMAND, view, PlacementSettings(policy, ALWAYS), turn)
        assert {prefill, decode} == {"m0", "m1"}


@pytest.mark.parametrize("policy", list(Policy))
def test_mixed_workers_alone_serve_locally_when_nothing_is_gained(policy: Policy) -> None:
    view = view_of(worker("m0", M), worker("m1", M))
    assert chosen(DEMAND, view, PlacementSettings(policy)) == ("m0", "m0")


@pytest.mark.parametrize("policy", list(Policy))
def test_parked_kv_is_sent_from_where_it_is(policy: Policy) -> None:
    view = view_of(worker("m0", M), worker("p0", P), worker("p1", P, waiting_prefill_tokens=99))
    parked = replace(DEMAND, parked_on="p1")
    assert chosen(parked, view, PlacementSettings(policy, Disaggregate.NEVER)) == ("p1", "m0")


def test_round_robin_takes_turns() -> None:
    view = view_of(*(worker(f"p{i}", P) for i in range(2)), *(worker(f"d{i}", D) for i in range(3)))
    routes = [chosen(DEMAND, view, PlacementSettings(Policy.ROUND_ROBIN), turn) for turn in range(4)]
    assert routes == [("p0", "d0"), ("p1", "d1"), ("p0", "d2"), ("p1", "d0")]


def test_least_loaded_joins_the_shortest_queues() -> None:
    view = view_of(
        worker("p0", P, waiting_prefill_tokens=50, waiting_prefills=1),
        worker("p1", P, waiting_prefill_tokens=10, waiting_prefills=5),
        worker("d0", D, peak_blocks=20, reserved_blocks=5),
        worker("d1", D, peak_blocks=10, reserved_blocks=14),
    )
    assert chosen(DEMAND, view, PlacementSettings(Policy.LEAST_LOADED)) == ("p1", "d1")


def test_least_loaded_goes_local_where_the_sum_is_least() -> None:
    view = view_of(worker("m0", M, waiting_prefill_tokens=100), worker("m1", M, peak_blocks=6))
    assert chosen(DEMAND, view, PlacementSettings(Policy.LEAST_LOADED)) == ("m1", "m1")


def test_slo_decodes_on_the_fullest_worker_that_keeps_the_pace() -> None:
    loads = {"d0": (2, 20), "d1": (10, 40), "d2": (60, 80)}
    view = view_of(
        worker("p0", P), *(worker(key, D, running=n, peak_blocks=blocks) for key, (n, blocks) in loads.items())
    )
    slo = PlacementSettings(Policy.SLO, ALWAYS)
    assert chosen(replace(DEMAND, goal=Goal(1, 1.0)), view, slo) == ("p0", "d2")
    assert chosen(replace(DEMAND, goal=Goal(1, 0.02)), view, slo) == ("p0", "d1")
    assert chosen(replace(DEMAND, goal=Goal(1, 0.008)), view, slo) == ("p0", "d0")


def test_slo_misses_by_the_least_when_it_must_and_says_so() -> None:
    view = view_of(worker("p0", P), worker("d0", D, running=60), worker("d1", D, running=50))
    route = place(replace(DEMAND, goal=Goal(1, 0.001)), view, PlacementSettings(Policy.SLO, ALWAYS))
    assert isinstance(route, Route)
    assert (route.decode, route.why.split(":")[0]) == ("d1", "misses tpot and others' tpot by the least")


def test_slo_goes_local_on_an_idle_worker_and_elsewhere_once_that_hurts() -> None:
    idle = view_of(worker("p0", P), worker("d0", D))
    busy = view_of(worker("p0", P), worker("d0", D, running=20, peak_blocks=50))
    queued = view_of(worker("p0", P, waiting_prefills=9, waiting_prefill_tokens=9000), worker("d0", D, running=1))
    assert chosen(DEMAND, idle, PlacementSettings()) == ("d0", "d0")
    assert chosen(DEMAND, busy, PlacementSettings()) == ("p0", "d0")
    assert chosen(DEMAND, queued, PlacementSettings()) == ("d0", "d0")


def test_slo_hands_off_still_when_every_pace_is_narrowly_missed() -> None:
    """A local prefill there would stall those that miss already, and so make every later plan miss by more."""
    view = view_of(worker("p0", P), worker("d0", D, running=20, context_tokens=4000))
    pace_s = price(DEMAND, view, PlacementSettings().latency).tpot_s[0]
    assert view.worker_ids[0] == "d0"
    demand = replace(DEMAND, goal=Goal(1, float(pace_s) * 0.99))
    assert chosen(demand, view, PlacementSettings()) == ("p0", "d0")


def test_own_orders_not_yet_in_a_view_move_the_next_choice() -> None:
    table = ViewTable()
    for each in (worker("p0", P), worker("p1", P), worker("d0", D), worker("d1", D)):
        table.join(each, 0.0)
    table.add_inflight("p0", "r", prefill_tokens=500)
    table.add_inflight("d0", "r", reserve_blocks=95)
    for policy in (Policy.LEAST_LOADED, Policy.SLO):
        assert chosen(DEMAND, table.snapshot(0.0), PlacementSettings(policy, ALWAYS)) == ("p1", "d1")


LOADS = st.builds(
    WorkerLoad,
    version=st.just(0),
    running=st.integers(0, 40),
    context_tokens=st.integers(0, 5000),
    waiting_prefills=st.integers(0, 3),
    waiting_prefill_tokens=st.sampled_from([0, 0, 100, 900]),
    reservations=st.integers(0, 3),
    reserved_blocks=st.integers(0, 12),
    peak_blocks=st.integers(0, 16),
)
WORKERS = st.tuples(st.sampled_from(Role), st.sampled_from(WorkerState), st.integers(8, 20), LOADS)
SETTINGS = st.builds(
    PlacementSettings,
    policy=st.sampled_from(Policy),
    disaggregate=st.sampled_from(Disaggregate),
    on_prefill_loss=st.sampled_from(OnPrefillLoss),
    max_waiting_prefill_tokens=st.sampled_from([500, 10_000]),
)
DEMANDS = st.builds(
    Demand,
    num_tokens=st.integers(1, 300),
    max_new_tokens=st.integers(1, 60),
    goal=st.builds(Goal, st.sampled_from([0.005, 0.1, 1.0]), st.sampled_from([0.004, 0.01, 1.0])),
    age_s=st.sampled_from([0.0, 2.0]),
    avoid=st.frozensets(st.sampled_from(["w0", "w1", "w2"]), max_size=2),
)


def joined(specs: list[tuple[Role, WorkerState, int, WorkerLoad]]) -> list[WorkerView]:
    return [
        WorkerView(f"w{i}", "a", role, blocks, 16, state, load) for i, (role, state, blocks, load) in enumerate(specs)
    ]


def may_decode(each: WorkerView, demand: Demand) -> bool:
    need = -(-demand.peak_tokens // each.block_tokens)
    room = each.total_blocks - each.load.peak_blocks - each.load.reserved_blocks
    return each.role != P and each.state == WorkerState.READY and need <= room


def may_prefill(each: WorkerView, demand: Demand, bound: int) -> bool:
    waiting = each.load.waiting_prefill_tokens
    fits = -(-demand.num_tokens // each.block_tokens) <= each.total_blocks
    return each.state == WorkerState.READY and fits and (not waiting or waiting + demand.num_tokens <= bound)


@settings(max_examples=120, deadline=None)
@given(DEMANDS, st.lists(WORKERS, max_size=5), SETTINGS, st.integers(0, 7))
def test_every_answer_holds_against_a_plain_check(
    demand: Demand, specs: list[tuple[Role, WorkerState, int, WorkerLoad]], knobs: PlacementSettings, turn: int
) -> None:
    workers = joined(specs)
    by_id, view = {each.worker_id: each for each in workers}, view_of(*workers)
    answer = place(demand, view, knobs, turn)
    assert answer == place(demand, view_of(*reversed(workers)), knobs, turn)  # the same whatever came first
    bound = knobs.max_waiting_prefill_tokens
    match answer:
        case Route(prefill, decode, _):
            assert may_prefill(by_id[prefill], demand, bound)
            assert (decode is None) == (demand.max_new_tokens == 1)
            assert decode is None or may_decode(by_id[decode], demand)
            if answer.is_disaggregated:
                assert by_id[prefill].role != D
                assert knobs.disaggregate != Disaggregate.NEVER
        case Hold(HoldReason.DECODE_BLOCKS):
            deciders = [each for each in workers if may_decode(each, demand)]
            assert len(deciders) <= 1  # one mixed worker may have room, and nobody to be paired with
        case Hold(HoldReason.PREFILL_QUEUE):
            assert not any(may_prefill(each, demand, bound) and each.role == P for each in workers)
        case Hold(HoldReason.NO_DECODE_WORKERS | HoldReason.NO_WORKERS):
            assert not any(
                each.state == WorkerState.READY and each.role != P and -(-demand.peak_tokens // 16) <= each.total_blocks
                for each in workers
            )
        case Reject(RejectReason.TOO_LARGE):
            hosts = [each for each in workers if each.role != P or demand.max_new_tokens == 1]
            assert all(each.total_blocks * 16 < demand.peak_tokens for each in hosts)
        case Reject(RejectReason.NO_PREFILL_WORKERS):
            assert knobs.on_prefill_loss == OnPrefillLoss.FAIL


@settings(max_examples=50, deadline=None)
@given(DEMANDS.filter(lambda demand: demand.max_new_tokens > 1), st.lists(LOADS, min_size=4, max_size=6))
def test_slo_equals_the_full_matrix_of_plans(demand: Demand, loads: list[WorkerLoad]) -> None:
    demand = replace(demand, avoid=frozenset())
    workers = [WorkerView(f"w{i}", "a", P if i % 2 else D, 200, 16, load=load) for i, load in enumerate(loads)]
    view, knobs = view_of(*workers), PlacementSettings()
    prices = price(demand, view, knobs.latency)

    def merit(prefill: int, decode: int) -> tuple[float, float]:
        handoff = (prices.exposed_s[prefill], prices.exposed_tpot_s[prefill]) if prefill != decode else (0.0, 0.0)
        late = violation(prices.ttft_s[prefill], MARGIN * demand.goal.ttft_s)
        pace_s, stall_s = (
            MARGIN * demand.goal.tpot_s,
            prices.stall_s[decode] / ANSWER_TOKENS if prefill == decode else 0,
        )
        slow = violation(prices.tpot_s[decode] + handoff[1], pace_s)
        after, before = (
            violation(gap_s, pace_s) for gap_s in (prices.tpot_s[decode] + stall_s, prices.tpot_before_s[decode])
        )
        harm = (loads[decode].running + loads[decode].reservations) * (after - before)
        return float(late) + float(slow) + float(harm), float(prices.prefill_cost_s[prefill] + handoff[0])

    plans = [(p, d) for p in range(len(loads)) for d in range(0, len(loads), 2) if p % 2 or p == d]
    route = place(demand, view, knobs)
    assert isinstance(route, Route)
    assert route.decode is not None
    ours = merit(int(route.prefill[1:]), int(route.decode[1:]))
    assert ours == pytest.approx(min(merit(p, d) for p, d in plans))
