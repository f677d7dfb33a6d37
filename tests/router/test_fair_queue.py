"""The router's queue: its order, who rises, who is set aside, and that nobody starves."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.router.fair_queue import FairQueue, FairSettings, Held

AGING_S = 10.0
SETTINGS = FairSettings(aging_s=AGING_S, max_overtaken=3, max_aside=2)


def queue_of(*held: Held, fair: FairSettings = SETTINGS) -> FairQueue:
    queue = FairQueue(fair)
    for each in held:
        queue.hold(each, 0.0)
    return queue


def first(queue: FairQueue, now: float = 0.0) -> str | None:
    return next((held.request_id for held in queue.turns(now)), None)


def drained(queue: FairQueue, now: float = 0.0) -> list[str]:
    order = []
    while (request_id := first(queue, now)) is not None:
        order.append(request_id)
        queue.serve(request_id)
        queue.check()
    return order


def go_round(queue: FairQueue, too_large: Sequence[str], room: int = 1, now: float = 0.0) -> list[str]:
    """One round of placing in which these find no place, and others do while there is room."""
    placed: list[str] = []
    for held in queue.turns(now):
        if held.request_id in too_large or len(placed) == room:
            queue.set_aside(held.request_id)
        else:
            queue.serve(held.request_id)
            placed.append(held.request_id)
        queue.check()
    return placed


def test_order_is_priority_then_arrival_then_id() -> None:
    queue = queue_of(Held(1, 0.0, "late-class"), Held(0, 2.0, "b"), Held(0, 2.0, "a"), Held(0, 1.0, "z"))
    assert drained(queue) == ["z", "a", "b", "late-class"]


def test_a_retry_goes_before_all_that_came_after_its_first_arrival_and_its_tenant_pays_once() -> None:
    newer = [
        Held(0, 5.0 + number, f"{tenant}{number}", tenant=tenant, cost=1) for number in range(3) for tenant in "ab"
    ]
    queue = queue_of(*newer, Held(0, 1.0, "retry", tenant="a", cost=0, is_retry=True))
    assert drained(queue) == ["retry", "a0", "b0", "a1", "b1", "a2", "b2"]


def test_tenants_share_by_weight_whoever_came_first() -> None:
    many = [Held(0, float(number), f"a{number}", tenant="a", cost=2, weight=1) for number in range(6)]
    late = [Held(0, 9.0 + number, f"b{number}", tenant="b", cost=2, weight=3) for number in range(6)]
    order = drained(queue_of(*many, *late))
    assert [name[0] for name in order[:8]].count("b") == 6


RISEN = [
    (9.9, ["high", "normal", "low"]),
    (10.0, ["normal", "high", "low"]),
    (20.0, ["low", "normal", "high"]),
]


@pytest.mark.parametrize(("now", "order"), RISEN)
def test_who_waits_rises_by_one_priority_at_a_time(now: float, order: list[str]) -> None:
    queue = queue_of(Held(1, 0.0, "low"), Held(0, 1.0, "normal"))
    queue.hold(Held(-1, 2.0, "high"), 2.0)
    assert drained(queue, now) == order


def test_waiting_counts_from_when_it_began_to_wait_not_from_arrival() -> None:
    queue = FairQueue(SETTINGS)
    queue.hold(Held(1, 0.0, "retry", is_retry=True), 100.0)
    queue.hold(Held(0, 101.0, "normal"), 101.0)
    assert first(queue, 109.0) == "normal"
    assert first(queue, 110.0) == "retry"


def test_expired_requests_leave_and_others_stay() -> None:
    queue = queue_of(Held(0, 0.0, "a", 3.0), Held(0, 0.0, "b"), Held(0, 0.0, "c", 5.0), Held(0, 0.0, "d", 4.0))
    go_round(queue, ["a", "b"], room=0)
    assert [held.request_id for held in queue.take_expired(4.0)] == ["a", "d"]
    assert drained(queue) == ["b", "c"]


def test_taking_what_is_not_held_gives_nothing() -> None:
    assert FairQueue().take("r") is None
    assert first(FairQueue()) is None
    assert FairQueue().oldest_wait_s(5.0) == 0


def test_the_oldest_wait_is_that_of_who_came_first_whatever_the_clock_does() -> None:
    queue = queue_of(Held(-1, 5.0, "urgent"), Held(0, 2.0, "oldest"))
    assert queue.oldest_wait_s(6.0) == 4
    assert queue.oldest_wait_s(-6.0) == 0


# --- what finds no place ----------------------------------------------------------------------------------------------


def test_one_that_finds_no_place_is_overtaken_a_bounded_number_of_times_and_then_waited_for() -> None:
    queue = queue_of(Held(0, 0.0, "big"), *(Held(0, 1.0 + number, f"s{number}") for number in range(6)))
    assert [go_round(queue, ["big"]) for _ in range(5)] == [["s0"], ["s1"], ["s2"], [], []]
    assert go_round(queue, [], room=9) == ["big", "s3", "s4", "s5"]


def test_one_that_is_set_aside_is_tried_first_each_time() -> None:
    queue = queue_of(Held(0, 0.0, "big"), Held(0, 1.0, "small"))
    assert go_round(queue, ["big"], room=0) == []
    assert go_round(queue, []) == ["big"]


def test_only_a_few_are_overtaken_at_a_time() -> None:
    queue = queue_of(*(Held(0, float(number), f"big{number}") for number in range(3)), Held(0, 5.0, "small"))
    assert go_round(queue, ["big0", "big1", "big2"]) == []
    assert go_round(queue, ["big1", "big2"]) == ["big0"]
    assert go_round(queue, ["big1", "big2"]) == []


def test_a_higher_priority_is_neither_held_up_nor_counted() -> None:
    queue = queue_of(Held(0, 0.0, "big"), Held(0, 0.5, "big2"))
    for number in range(5):
        queue.hold(Held(-1, 1.0, f"high{number}"), 0.0)
        assert go_round(queue, ["big", "big2"]) == [f"high{number}"]
    for number in range(5):
        queue.hold(Held(0, 1.0 + number, f"s{number}"), 0.0)
    queue.take("big2")
    assert [go_round(queue, ["big"]) for _ in range(4)] == [["s0"], ["s1"], ["s2"], []]
    queue.hold(Held(-1, 9.0, "high"), 0.0)
    assert go_round(queue, ["big"]) == ["high"]


def test_who_takes_nothing_that_it_lacks_does_not_overtake() -> None:
    queue = queue_of(Held(0, 0.0, "big"), *(Held(0, 1.0 + number, f"s{number}") for number in range(9)))
    for number in range(9):
        for held in queue.turns(0.0):
            if held.request_id == "big":
                queue.set_aside("big", is_contested=False)
            else:
                queue.serve(held.request_id)
                break
        assert len(queue) == 9 - number


def test_a_tenant_that_may_not_start_holds_up_nobody_and_its_retries_go_on() -> None:
    blocked = [Held(0, 0.0, "a", tenant="a"), Held(0, 0.5, "again", tenant="a", is_retry=True)]
    queue = queue_of(*blocked, Held(0, 1.0, "b", tenant="b"))
    queue.set_blocked("a", is_blocked=True)
    assert go_round(queue, [], room=9) == ["again", "b"]
    queue.set_blocked("a", is_blocked=False)
    assert go_round(queue, []) == ["a"]


def test_one_set_aside_whose_tenant_may_not_start_blocks_nobody() -> None:
    queue = queue_of(Held(0, 0.0, "a", tenant="a"), *(Held(0, 1.0 + number, f"s{number}") for number in range(6)))
    assert [go_round(queue, ["a"]) for _ in range(4)] == [["s0"], ["s1"], ["s2"], []]
    queue.set_blocked("a", is_blocked=True)
    assert go_round(queue, []) == ["s3"]
    queue.set_blocked("a", is_blocked=False)
    assert go_round(queue, ["a"]) == []


# --- any pattern ------------------------------------------------------------------------------------------------------

arrivals = st.tuples(st.integers(-1, 1), st.sampled_from(["a", "b", "new"]), st.integers(1, 4))


@settings(deadline=None)
@given(st.lists(st.lists(arrivals, max_size=3), min_size=1, max_size=12))
def test_whoever_was_let_in_is_tried_whatever_comes_after(pattern: list[list[tuple[int, str, int]]]) -> None:
    """One goes in each second; as long as others wait, as many come as the queue takes, in a pattern for ever."""
    queue, number, waits, since = FairQueue(SETTINGS), 0, [0.0], dict[str, float]()
    queue.hold(Held(1, 0.0, "low", tenant="low", cost=4), 0.0)
    since["low"] = 0.0
    for second in range(400):
        for priority, tenant, cost in pattern[second % len(pattern)]:
            if len(queue) < 12:
                number += 1
                since[f"r{number}"] = float(second)
                name = f"t{number}" if tenant == "new" else tenant
                queue.hold(Held(priority, float(second), f"r{number}", tenant=name, cost=cost), float(second))
        request_id = first(queue, float(second))
        if request_id is not None:
            waits.append(second - since.pop(request_id))
            queue.serve(request_id)
    most_s = 2 * AGING_S + 12 * 4 + 12  # to the top; then 12 of cost 4 against costs of 1 at the least
    assert max(waits) <= most_s
    assert all(400 - at <= most_s for at in since.values())


@dataclass
class Plan:
    """Any events: arrivals, rounds, cancellations, leave to run, and a clock that jumps."""

    what: str
    number: int
    priority: int
    tenant: str
    jump_s: float


plans = st.lists(
    st.builds(
        Plan,
        st.sampled_from(["hold", "hold", "round", "take", "expire", "block"]),
        st.integers(0, 11),
        st.integers(-2, 3),
        st.sampled_from("abc"),
        st.sampled_from([0.0, 0.0, 1.0, 11.0, -5.0, -1000.0, 100_000.0]),
    ),
    max_size=50,
)


def play(plan: list[Plan]) -> list[str]:
    """What happened, in order; the queue is checked after each step."""
    queue, now, said, blocked = FairQueue(SETTINGS), 0.0, list[str](), set[str]()
    levels: dict[str, int] = {}
    for each in plan:
        now += each.jump_s
        request_id = f"r{each.number}"
        if each.what == "hold" and request_id not in queue:
            expires_at = now + 50 if each.number % 3 else float("inf")
            queue.hold(
                Held(each.priority, now, request_id, expires_at, each.tenant, 1 + each.number % 3, each.number), now
            )
            levels[request_id] = each.priority
        elif each.what == "round":
            said += go_round(queue, [f"r{number}" for number in range(each.number)], room=2, now=now)
        elif each.what == "take":
            said.append(f"{queue.take(request_id) is not None}")
        elif each.what == "expire":
            said += [held.request_id for held in queue.take_expired(now)]
        elif each.what == "block":
            blocked ^= {each.tenant}
            queue.set_blocked(each.tenant, is_blocked=each.tenant in blocked)
        queue.check()
        for name in list(levels):
            if name in queue:
                assert queue.level_of(name) <= levels[name], "a priority never sinks while it waits"
                levels[name] = queue.level_of(name)
            else:
                del levels[name]
    for tenant in blocked:
        queue.set_blocked(tenant, is_blocked=False)
    num_left = len(queue)
    rest = drained(queue, now)
    assert len(rest) == num_left, "whatever the clock did, all are tried"
    return said + rest


@settings(deadline=None)
@given(plans)
def test_any_events_leave_the_queue_whole_and_the_same_events_give_the_same_order(plan: list[Plan]) -> None:
    assert play(plan) == play(plan)


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 3), st.integers(0, 9), st.booleans()), max_size=30))
def test_for_one_tenant_the_queue_equals_a_sorted_list(events: list[tuple[int, int, int, bool]]) -> None:
    queue, model = FairQueue(), dict[str, Held]()
    for priority, arrived, number, takes in events:
        request_id = str(number)
        if takes or request_id in model:
            assert queue.take(request_id) == model.pop(request_id, None)
        else:
            model[request_id] = Held(priority, float(arrived), request_id)
            queue.hold(model[request_id], 0.0)
        assert len(queue) == len(model)
        order = sorted(model.values(), key=lambda held: (held.priority, held.arrived_at, held.request_id))
        assert first(queue) == (order[0].request_id if order else None)
    assert drained(queue) == [held.request_id for held in order] if events else not len(queue)
