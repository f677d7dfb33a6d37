"""Which workers may be asked at all, for every knob, and which rule is named when none may."""

from dataclasses import replace

import pytest

from twinpool.core.messages import Goal, Role
from twinpool.router.candidates import Candidates, find_candidates
from twinpool.router.demand import Demand
from twinpool.router.route import (
    Disaggregate,
    Hold,
    HoldReason,
    OnPrefillLoss,
    PlacementSettings,
    Policy,
    Reject,
    RejectReason,
)
from twinpool.router.view_table import ViewTable
from twinpool.router.views import ClusterView, WorkerLoad, WorkerState, WorkerView

ROLES = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}
DEMAND = Demand(num_tokens=100, max_new_tokens=20, goal=Goal(10.0, 1.0))  # 8 blocks at its peak
SETTINGS = PlacementSettings()


def view_of(*names: str, now: float = 0.0, total_blocks: int = 100, **loads: WorkerLoad) -> ClusterView:
    """Workers by name, whose first letter is the role: `p0`; `-d1` is lost, `~d1` draining."""
    table = ViewTable()
    for name in names:
        worker_id = name.lstrip("-~")
        load = loads.get(worker_id, WorkerLoad())
        table.join(WorkerView(worker_id, "a", ROLES[worker_id[0]], total_blocks, 16, load=load), 0.0)
        if name.startswith("-"):
            table.lost(worker_id)
        elif name.startswith("~"):
            table.drain(worker_id)
    return table.snapshot(now)


def found_in(demand: Demand, view: ClusterView, settings: PlacementSettings = SETTINGS) -> tuple[str, str, str] | str:
    """("prefill", "decode", "local") as joined ids, or the reason of a refusal."""
    found = find_candidates(demand, view, settings)
    if isinstance(found, Candidates):
        lists = (found.prefill, found.decode, found.local)
        return tuple(" ".join(view.worker_ids[index] for index in indices) for indices in lists)  # type: ignore[return-value]
    return found.reason


@pytest.mark.parametrize(
    ("names", "knob", "policy", "expected"),
    [
        ("p0 d0", Disaggregate.ALWAYS, Policy.SLO, ("p0", "d0", "")),
        ("p0 d0", Disaggregate.WHEN_CHEAPER, Policy.SLO, ("p0", "d0", "d0")),
        ("p0 d0", Disaggregate.NEVER, Policy.SLO, ("", "d0", "d0")),
        ("p0 d0 m0", Disaggregate.ALWAYS, Policy.SLO, ("m0 p0", "d0 m0", "")),
        ("p0 d0 m0", Disaggregate.WHEN_CHEAPER, Policy.LEAST_LOADED, ("p0", "d0 m0", "d0 m0")),
        ("m0 m1", Disaggregate.ALWAYS, Policy.ROUND_ROBIN, ("m0 m1", "m0 m1", "")),
        ("m0 m1", Disaggregate.WHEN_CHEAPER, Policy.ROUND_ROBIN, ("", "m0 m1", "m0 m1")),
        ("m0", Disaggregate.ALWAYS, Policy.SLO, ("m0", "m0", "m0")),
        ("d0 d1", Disaggregate.ALWAYS, Policy.SLO, ("", "d0 d1", "d0 d1")),
        ("-p0 p1 ~p2 d0 -d1 ~d2", Disaggregate.ALWAYS, Policy.SLO, ("p1", "d0", "")),
    ],
)
def test_each_knob_allows_its_plans(names: str, knob: Disaggregate, policy: Policy, expected: tuple[str, ...]) -> None:
    settings = PlacementSettings(policy=policy, disaggregate=knob)
    assert found_in(DEMAND, view_of(*names.split()), settings) == expected


@pytest.mark.parametrize(
    ("names", "knob", "expected"),
    [
        ("p0 d0", Disaggregate.ALWAYS, ("p0", "", "")),
        ("p0 d0", Disaggregate.NEVER, ("d0", "", "")),
        ("d0", Disaggregate.ALWAYS, ("d0", "", "")),
        ("p0", Disaggregate.NEVER, ("p0", "", "")),
        ("p0 -d0", Disaggregate.ALWAYS, ("p0", "", "")),
        ("-p0", Disaggregate.ALWAYS, HoldReason.NO_WORKERS),
        ("", Disaggregate.ALWAYS, HoldReason.NO_WORKERS),
    ],
)
def test_one_token_asks_for_a_prefill_alone(names: str, knob: Disaggregate, expected: object) -> None:
    one = replace(DEMAND, max_new_tokens=1)
    assert found_in(one, view_of(*names.split()), PlacementSettings(disaggregate=knob)) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", HoldReason.NO_DECODE_WORKERS),
        ("p0", HoldReason.NO_DECODE_WORKERS),
        ("p0 -d0 ~d1", HoldReason.NO_DECODE_WORKERS),
    ],
)
def test_without_decode_workers_requests_wait(names: str, expected: HoldReason) -> None:
    assert find_candidates(DEMAND, view_of(*names.split()), SETTINGS) == Hold(expected)


@pytest.mark.parametrize("names", ["d0", "-p0 d0", "~p0 d0"])
def test_without_prefill_workers_the_knob_decides(names: str) -> None:
    view = view_of(*names.split())
    fail = PlacementSettings(on_prefill_loss=OnPrefillLoss.FAIL)
    assert find_candidates(DEMAND, view, fail) == Reject(RejectReason.NO_PREFILL_WORKERS)
    assert found_in(DEMAND, view, SETTINGS) == ("", "d0", "d0")
    assert found_in(DEMAND, view, replace(fail, disaggregate=Disaggregate.NEVER)) == ("", "d0", "d0")


def test_a_mixed_worker_is_a_prefill_worker_too() -> None:
    fail = PlacementSettings(on_prefill_loss=OnPrefillLoss.FAIL)
    assert found_in(DEMAND, view_of("m0"), fail) == ("m0", "m0", "m0")


def test_what_no_worker_could_ever_hold_is_refused_at_once() -> None:
    too_large = Reject(RejectReason.TOO_LARGE)
    assert find_candidates(DEMAND, view_of("p0", "d0", total_blocks=7), SETTINGS) == too_large
    assert find_candidates(DEMAND, view_of("p0", "-d0", total_blocks=7), SETTINGS) == too_large
    assert find_candidates(replace(DEMAND, max_new_tokens=1), view_of("p0", total_blocks=6), SETTINGS) == too_large
    assert found_in(DEMAND, view_of("p0", "d0", total_blocks=8)) == ("p0", "d0", "d0")


def test_what_only_a_lost_worker_can_hold_waits_for_it() -> None:
    table = ViewTable()
    for worker_id, total_blocks in (("d0", 7), ("d1", 8)):
        table.join(WorkerView(worker_id, "a", Role.DECODE, total_blocks, 16), 0.0)
    table.lost("d1")
    assert find_candidates(DEMAND, table.snapshot(0.0), SETTINGS) == Hold(HoldReason.NO_DECODE_WORKERS)


@pytest.mark.parametrize(("peak", "reserved", "fits"), [(92, 0, True), (0, 92, True), (46, 46, True), (46, 47, False)])
def test_the_whole_answer_must_fit_above_forecast_and_promises(peak: int, reserved: int, fits: bool) -> None:
    view = view_of("p0", "d0", d0=WorkerLoad(peak_blocks=peak, reserved_blocks=reserved))
    expected = ("p0", "d0", "d0") if fits else HoldReason.DECODE_BLOCKS
    assert found_in(DEMAND, view) == expected


def test_a_full_prefill_queue_holds_only_what_would_lengthen_it() -> None:
    settings = PlacementSettings(disaggregate=Disaggregate.ALWAYS, max_waiting_prefill_tokens=120)
    busy = view_of("p0", "d0", p0=WorkerLoad(waiting_prefill_tokens=21))
    assert find_candidates(DEMAND, busy, settings) == Hold(HoldReason.PREFILL_QUEUE)
    assert find_candidates(replace(DEMAND, max_new_tokens=1), busy, settings) == Hold(HoldReason.PREFILL_QUEUE)
    less = view_of("p0", "d0", p0=WorkerLoad(waiting_prefill_tokens=20))
    assert found_in(DEMAND, less, settings) == ("p0", "d0", "")
    huge = replace(DEMAND, num_tokens=500)
    assert found_in(huge, view_of("p0", "d0"), settings) == ("p0", "d0", "")


def test_workers_to_avoid_are_left_out_while_others_remain() -> None:
    avoiding = replace(DEMAND, avoid=frozenset({"p0", "d1"}))
    assert found_in(avoiding, view_of("p0", "p1", "d0", "d1")) == ("p1", "d0", "d0")
    assert found_in(avoiding, view_of("p0", "d1")) == ("p0", "d1", "d1")


def test_avoiding_never_makes_a_plan_impossible() -> None:
    settings = PlacementSettings(disaggregate=Disaggregate.ALWAYS)
    avoiding = replace(DEMAND, avoid=frozenset({"m0"}))
    assert found_in(avoiding, view_of("m0", "m1"), settings) == ("m0 m1", "m0 m1", "")


def test_workers_silent_while_they_decode_are_left_out_while_others_remain() -> None:
    decoding = WorkerLoad(running=1)
    assert found_in(DEMAND, view_of("p0", "d0", "d1", now=6.0, d0=decoding)) == ("p0", "d1", "d1")
    assert found_in(DEMAND, view_of("p0", "d0", "d1", now=5.0, d0=decoding)) == ("p0", "d0 d1", "d0 d1")
    assert found_in(DEMAND, view_of("p0", "d0", now=6.0, d0=decoding)) == ("p0", "d0", "d0")


def test_an_idle_worker_may_be_silent() -> None:
    assert found_in(DEMAND, view_of("p0", "d0", "d1", now=600.0)) == ("p0", "d0 d1", "d0 d1")


def test_parked_kv_stays_where_it_is_and_does_not_queue() -> None:
    parked = replace(DEMAND, parked_on="p0", avoid=frozenset({"p0"}))
    settings = PlacementSettings(max_waiting_prefill_tokens=1)
    view = view_of("~p0", "p1", "d0", p0=WorkerLoad(waiting_prefill_tokens=9))
    assert found_in(parked, view, settings) == ("p0", "d0", "")
    assert found_in(parked, view_of("p0", "-d0"), settings) == HoldReason.NO_DECODE_WORKERS


def test_a_starting_worker_is_not_ready() -> None:
    table = ViewTable()
    table.join(WorkerView("d0", "a", Role.DECODE, 100, 16, WorkerState.STARTING), 0.0)
    assert found_in(DEMAND, table.snapshot(0.0)) == HoldReason.NO_DECODE_WORKERS
