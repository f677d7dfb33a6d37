"""The waiting room: who is let in, who runs, who pays, and who is told that it is too late."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import DeadlineExceeded, InvalidRequest, Overloaded
from twinpool.core.messages import Goal, Request, Role
from twinpool.core.sampling import SamplingParams
from twinpool.router import waiting
from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import LatencyModel, LinearForm
from twinpool.router.fair_queue import FairSettings
from twinpool.router.route import HoldReason, PlacementSettings, Reject, RejectReason, Route
from twinpool.router.standing import OnMiss, Standing
from twinpool.router.tenants import TenantLimits
from twinpool.router.view_table import ViewTable
from twinpool.router.views import WorkerView
from twinpool.router.waiting import MAX_HOLD_S, Placing, WaitingRoom

BLOCK_TOKENS = 10
ACME = Standing("acme")
KNOWN = {"cpu": LatencyModel(LinearForm(prefill_a_s=0.0, prefill_b_s=0.1, prefill_c_s=0.0))}


class Room(WaitingRoom):
    """One mixed worker, whose view a test may change. Its caches are known, and empty."""

    def __init__(self, num_blocks: int, latencies: dict[str, LatencyModel], admission: AdmissionSettings) -> None:
        self.table = ViewTable()
        self.join(num_blocks, 0.0)
        super().__init__(self.table, PlacementSettings(latencies=latencies), admission, lambda *_: None)

    def join(self, num_blocks: int, now: float) -> None:
        self.table.join(WorkerView("w", "1", Role.MIXED, num_blocks, BLOCK_TOKENS, kind="cpu"), now)


def room_of(num_blocks: int = 100, latencies: dict[str, LatencyModel] | None = None, **admission: object) -> Room:
    return Room(num_blocks, latencies or {}, AdmissionSettings(**admission))  # type: ignore[arg-type]


def placing(
    name: str = "r", num_tokens: int = 10, at: float = 0.0, standing: Standing = ACME, **others: object
) -> Placing:
    sampling = SamplingParams(max_tokens=11, seed=1)
    request = Request(name, 1, tuple(range(num_tokens)), num_tokens, sampling, Goal(10, 1))
    return Placing(request, at, float("inf"), standing=standing, **others)  # type: ignore[arg-type]


def offer(room: Room, *placings: Placing, now: float = 0.0) -> None:
    room.admit(placings, (), now)
    for each in placings:
        room.put(each, now)


def go(room: Room, now: float = 0.0) -> list[str]:
    """One round; the ids of those that were placed, which take room on the worker."""
    placed = []
    for each in room.turns(now):
        if isinstance(room.place(each, now), Route):
            request = each.request
            placed.append(request.request_id)
            blocks = -(-request.peak_tokens // BLOCK_TOKENS)
            room.table.add_inflight("w", request.request_id, reserve_blocks=blocks)
    return placed


def test_a_tenant_over_its_rate_is_refused_and_nothing_is_charged_for_it() -> None:
    room = room_of(tenants={"acme": TenantLimits(tokens_per_s=5, burst_tokens=15)})
    offer(room, placing("a", 10))
    with pytest.raises(Overloaded, match="tenant acme is over its tokens_per_s, 5") as caught:
        room.admit([placing("b", 10)], (), 0.0)
    assert (caught.value.retry_after_s, caught.value.tenant) == (1.0, "acme")
    offer(room, placing("c", 10, standing=Standing("other")))
    offer(room, placing("b", 10), now=1.0)
    assert len(room) == 3
    counts = room.tenants()["acme"][1]
    assert (counts.admitted, counts.refused, counts.prompt_tokens) == (2, 1, 20)


def test_a_tenant_has_so_many_running_and_the_next_goes_when_one_ends() -> None:
    room = room_of(tenants={"acme": TenantLimits(max_running=1)})
    offer(room, placing("a1"), placing("a2"), placing("a3"))
    offer(room, placing("b1", standing=Standing("b")))
    assert go(room) == ["a1", "b1"]
    assert room.tenants()["acme"][0] == 2
    room.concluded("a1", 7, 1.0)
    assert go(room, 1.0) == ["a2"]


def test_a_retry_keeps_its_place_among_the_running_and_pays_nothing() -> None:
    room = room_of(tenants={"acme": TenantLimits(tokens_per_s=5, burst_tokens=20, max_running=1)})
    first = placing("a1")
    offer(room, first)
    assert go(room) == ["a1"]
    room.generated("a1", 2, 1.0)
    room.put(placing("a2"), 1.0)
    room.take("a1", 1.0)  # preempted
    room.put(replace(first, request=replace(first.request, epoch=2)), 1.0)
    assert go(room, 1.0) == ["a1"]
    counts = room.tenants()["acme"][1]
    assert (counts.running, counts.admitted, counts.prompt_tokens, counts.output_tokens) == (1, 1, 10, 2)


def test_taking_is_idempotent_and_counts_once() -> None:
    room = room_of(tenants={"acme": TenantLimits(max_running=1)})
    offer(room, placing("a"))
    assert go(room) == ["a"]
    for _ in range(3):
        room.take("a", 1.0)
    assert room.tenants()["acme"][1].running == 0


def test_nobody_is_counted_where_nobody_is_named_or_limited() -> None:
    room = room_of()
    offer(room, placing(standing=Standing()))
    assert room.tenants() == {}
    offer(room, placing("a"))
    assert set(room.tenants()) == {"default", "acme"}


@pytest.mark.parametrize(("deadline_s", "is_refused"), [(0.1, True), (8.0, True), (8.2, False)])
def test_a_deadline_that_the_prefill_alone_misses_is_refused_at_once(deadline_s: float, is_refused: bool) -> None:
    room = room_of(latencies=KNOWN)
    one = placing(num_tokens=100, standing=Standing(deadline_s=deadline_s))  # 10 s, of which 8 are sure
    if not is_refused:
        offer(room, one)
        assert go(room) == ["r"]
        return
    with pytest.raises(DeadlineExceeded):
        room.admit([one], (), 0.0)


def test_who_became_too_late_while_it_waited_never_starts() -> None:
    room = room_of(latencies=KNOWN)
    room.table.lost("w")
    offer(room, placing("late", 100, standing=Standing(deadline_s=20)), placing("other", 100))
    assert go(room, 1.0) == []
    room.join(100, 12.5)
    decisions = [room.place(each, 12.5) for each in room.turns(12.5)]
    assert decisions[0] == Reject(RejectReason.DEADLINE)
    assert isinstance(decisions[1], Route)


def test_who_became_too_late_is_told_at_the_next_look_not_at_its_deadline() -> None:
    room = room_of(latencies=KNOWN)
    offer(room, placing("late", 100, standing=Standing(deadline_s=20)))
    assert room.take_expired(11.9) == []
    ((request_id, error),) = room.take_expired(12.0)
    assert request_id == "late"
    assert isinstance(error, DeadlineExceeded)


def test_a_first_token_that_came_meets_the_deadline_of_the_class_whatever_follows() -> None:
    room = room_of()
    one = placing(standing=Standing(deadline_s=5))
    request = replace(one.request, epoch=2, token_ids=tuple(range(11)))  # with one token emitted
    room.put(replace(one, request=request), 6.0)
    assert room.take_expired(6.0) == []
    ((_, error),) = room.take_expired(6.0 + MAX_HOLD_S)
    assert not isinstance(error, DeadlineExceeded)


def test_a_small_request_goes_past_a_large_one_until_that_has_waited_enough() -> None:
    room = room_of(num_blocks=10, fair=FairSettings(max_overtaken=2))
    offer(room, placing("half", 40))
    assert go(room) == ["half"]
    offer(room, placing("big", 60))
    for number in range(4):
        offer(room, placing(f"s{number}", 5, at=1.0))
    assert go(room) == ["s0", "s1"]
    assert room.reason(placing("big")) == HoldReason.DECODE_BLOCKS
    for name in ("s0", "s1"):
        room.table.settle("w", name)
        room.take(name, 1.0)
    assert go(room, 1.0) == [], "what frees up gathers for the large one"
    room.table.settle("w", "half")
    assert go(room, 1.0) == ["big", "s2"]


def test_nobody_is_asked_for_twice_while_the_workers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = waiting.place

    def counted(demand, *others):  # type: ignore[no-untyped-def]
        asked.append(demand.num_tokens)
        return real(demand, *others)

    monkeypatch.setattr(waiting, "place", counted)
    room = room_of(num_blocks=10)
    offer(room, placing("one", 80))
    go(room)
    for name, size in (("big", 60), ("bigger", 70)):
        offer(room, placing(name, size))
    for _ in range(3):
        go(room)
    assert asked == [80, 60, 70], "each is asked for once, as one may be too large for any worker"


def test_too_large_is_told_though_another_waits_for_room() -> None:
    room = room_of(num_blocks=10)
    offer(room, placing("one", 80))
    go(room)
    offer(room, placing("waits", 60))
    offer(room, placing("never", 100))
    decisions = {each.request.request_id: room.place(each, 0.0) for each in room.turns(0.0)}
    assert decisions == {"waits": None, "never": Reject(RejectReason.TOO_LARGE)}


def test_more_answers_than_a_tenant_may_ever_have_wait_are_refused_by_name() -> None:
    room = room_of(max_queued=4, tenants={"acme": TenantLimits(queue_share=0.5)})
    with pytest.raises(InvalidRequest, match=r"sampling\.n"):
        room.admit([placing(str(number)) for number in range(4)], (), 0.0)
    room.admit([placing(str(number)) for number in range(3)], (), 0.0)


def test_answers_to_come_count_against_their_tenants_share() -> None:
    room = room_of(max_queued=8, tenants={"acme": TenantLimits(queue_share=0.5)})
    with pytest.raises(Overloaded, match="tenant acme fills its queue_share"):
        room.admit([placing("a"), placing("b")], [ACME] * 4, 0.0)
    room.admit([placing("a"), placing("b")], [Standing("b")] * 4, 0.0)


def test_placement_is_told_what_the_class_wants_on_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = waiting.place
    monkeypatch.setattr(waiting, "place", lambda demand, *others: seen.append(demand.on_miss) or real(demand, *others))
    room = room_of()
    offer(room, placing(standing=Standing(on_miss=OnMiss.REJECT)))
    assert go(room) == ["r"]
    assert seen == [OnMiss.REJECT]


LIMITS = {
    "default": TenantLimits(queue_share=0.5),
    "acme": TenantLimits(max_running=2, queue_share=0.25, weight=2),
    "busy": TenantLimits(tokens_per_s=1, burst_tokens=30, queue_share=1.0),
}
steps = st.tuples(
    st.sampled_from(["offer", "offer", "go", "end", "preempt"]),
    st.sampled_from(["acme", "busy", "other"]),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 30.0, -5.0]),
)


@given(st.lists(steps, max_size=40))
def test_no_bound_is_passed_and_nothing_is_left_whatever_comes(plan: list[tuple[str, str, int, float]]) -> None:
    room, now, running, number = room_of(6, max_queued=8, tenants=LIMITS), 0.0, dict[str, Placing](), 0
    known = dict[str, Placing]()
    for what, tenant, num, jump_s in plan:
        now += jump_s
        if what == "offer":
            number += 1
            ones = [placing(f"{number}.{one}", standing=Standing(tenant)) for one in range(num)]
            with suppress(Overloaded, InvalidRequest):
                offer(room, *ones, now=now)
                known |= {one.request.request_id: one for one in ones}
        elif what == "go":
            running |= {name: known[name] for name in go(room, now)}
        elif running:
            name, one = running.popitem()
            room.table.settle("w", name)
            room.take(name, now)
            if what == "preempt":
                known[name] = replace(one, request=replace(one.request, epoch=one.request.epoch + 1))
                room.put(known[name], now)
        retries = sum(one.is_retry for one in known.values())
        told = room.tenants()
        assert len(room) <= 8 + 1 + retries  # one of a call may go at once, and finds no place
        assert sum(counts.running for _, counts in told.values()) >= len(running)
        if "acme" in told:
            assert told["acme"][0] <= 2 + 1 + retries
            assert told["acme"][1].running <= 2
    for name in known:
        room.table.settle("w", name)
        room.take(name, now)
    assert len(room) == 0
    assert all((queued, counts.running) == (0, 0) for queued, counts in room.tenants().values())
