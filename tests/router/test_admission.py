"""The router's queue: its order, its bounds and its deadlines."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.router.admission import AdmissionSettings, Admitted, Held, HeldQueue, RefusalReason, Refused, admit

FOREVER = float("inf")


def queue_of(*held: Held) -> HeldQueue:
    queue = HeldQueue()
    for each in held:
        queue.hold(each)
    return queue


def drained(queue: HeldQueue) -> list[str]:
    order = []
    while (held := queue.first()) is not None:
        order.append(held.request_id)
        queue.take(held.request_id)
    return order


def test_order_is_priority_then_arrival_then_id() -> None:
    queue = queue_of(Held(1, 0.0, "late-class"), Held(0, 2.0, "b"), Held(0, 2.0, "a"), Held(0, 1.0, "z"))
    assert drained(queue) == ["z", "a", "b", "late-class"]


def test_a_retry_goes_before_all_that_came_after_its_first_arrival() -> None:
    queue = queue_of(Held(0, 5.0, "newer"))
    queue.hold(Held(0, 1.0, "retry"))
    assert drained(queue) == ["retry", "newer"]


@pytest.mark.parametrize(("num_held", "admitted"), [(0, True), (1, True), (2, False), (3, False)])
def test_the_queue_is_bounded(num_held: int, admitted: bool) -> None:
    queue = queue_of(*(Held(0, 0.0, str(i)) for i in range(num_held)))
    answer = admit(queue, FOREVER, AdmissionSettings(max_queued=2), now=1.0)
    assert isinstance(answer, Admitted) == admitted
    assert len(queue) == num_held


@pytest.mark.parametrize(("num_requests", "admitted"), [(1, True), (2, True), (3, False)])
def test_several_are_admitted_together_or_not_at_all(num_requests: int, admitted: bool) -> None:
    queue = queue_of(Held(0, 0.0, "a"))
    answer = admit(queue, FOREVER, AdmissionSettings(max_queued=3), 1.0, num_requests)
    assert isinstance(answer, Admitted) == admitted


@pytest.mark.parametrize(("now", "retry_after_s"), [(0.0, 1.0), (7.0, 7.0), (99.0, 30.0)])
def test_a_refusal_says_when_to_come_back(now: float, retry_after_s: float) -> None:
    queue = queue_of(Held(-1, 5.0, "urgent"), Held(0, 0.0, "oldest"))
    answer = admit(queue, FOREVER, AdmissionSettings(max_queued=2), now)
    assert answer == Refused(RefusalReason.QUEUE_FULL, retry_after_s)


@pytest.mark.parametrize("deadline_at", [-1.0, 0.0])
def test_what_is_past_its_deadline_is_refused(deadline_at: float) -> None:
    answer = admit(HeldQueue(), deadline_at, AdmissionSettings(), now=0.0)
    assert answer == Refused(RefusalReason.DEADLINE, 0.0)


def test_expired_requests_leave_and_others_stay() -> None:
    queue = queue_of(Held(0, 0.0, "a", 3.0), Held(0, 0.0, "b"), Held(0, 0.0, "c", 5.0), Held(0, 0.0, "d", 4.0))
    assert [held.request_id for held in queue.take_expired(4.0)] == ["a", "d"]
    assert drained(queue) == ["b", "c"]


def test_taking_what_is_not_held_gives_nothing() -> None:
    assert HeldQueue().take("r") is None
    assert HeldQueue().first() is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 9), st.booleans()), max_size=30))
def test_the_queue_equals_a_sorted_list(events: list[tuple[int, int, int, bool]]) -> None:
    queue, model = HeldQueue(), dict[str, Held]()
    for priority, arrived, number, takes in events:
        request_id = str(number)
        if takes or request_id in model:
            assert queue.take(request_id) == model.pop(request_id, None)
        else:
            model[request_id] = Held(priority, float(arrived), request_id)
            queue.hold(model[request_id])
        assert len(queue) == len(model)
        assert queue.first() == min(model.values(), default=None)
    assert drained(queue) == [held.request_id for held in sorted(model.values())]
