"""Bounds of the router's queue and of each tenant's part of it."""

import pytest

from twinpool.router.admission import AdmissionSettings, Admitted, Applicants, RefusalReason, Refused, admit
from twinpool.router.fair_queue import FairQueue, Held
from twinpool.router.tenants import TenantLimits

FOREVER = float("inf")


def queue_of(*held: Held) -> FairQueue:
    queue = FairQueue()
    for each in held:
        queue.hold(each, 0.0)
    return queue


@pytest.mark.parametrize(("num_held", "admitted"), [(0, True), (1, True), (2, False), (3, False)])
def test_the_queue_is_bounded(num_held: int, admitted: bool) -> None:
    queue = queue_of(*(Held(0, 0.0, str(i)) for i in range(num_held)))
    answer = admit(queue, Applicants(1), AdmissionSettings(max_queued=2), now=1.0)
    assert isinstance(answer, Admitted) == admitted
    assert len(queue) == num_held


@pytest.mark.parametrize(
    ("num_requests", "promised", "admitted"), [(1, 0, True), (2, 0, True), (3, 0, False), (2, 1, False)]
)
def test_several_are_admitted_together_or_not_at_all(num_requests: int, promised: int, admitted: bool) -> None:
    who = Applicants(num_requests, num_promised=promised)
    answer = admit(queue_of(Held(0, 0.0, "a")), who, AdmissionSettings(max_queued=3), 1.0)
    assert isinstance(answer, Admitted) == admitted


@pytest.mark.parametrize(("own", "promised", "admitted"), [(1, 0, True), (2, 0, False), (1, 1, False), (0, 1, True)])
def test_a_tenant_fills_its_share_and_leaves_the_rest_to_others(own: int, promised: int, admitted: bool) -> None:
    queue = queue_of(*(Held(0, 0.0, f"a{i}", tenant="a") for i in range(own)), Held(0, 0.0, "b", tenant="b"))
    limits, settings = TenantLimits(queue_share=0.5), AdmissionSettings(max_queued=5)
    who = Applicants(1, tenant="a", limits=limits, num_promised=promised, num_promised_of_tenant=promised)
    answer = admit(queue, who, settings, 1.0)
    assert isinstance(answer, Admitted) == admitted
    if not admitted:
        assert answer == Refused(RefusalReason.TENANT_SHARE, 1.0, "a")
    assert isinstance(admit(queue, Applicants(1, tenant="b", limits=limits), settings, 1.0), Admitted)


def test_the_smallest_share_is_one_place_where_there_are_any() -> None:
    limits = TenantLimits(queue_share=0.01)
    assert AdmissionSettings(max_queued=10).max_queued_of(limits) == 1
    assert AdmissionSettings(max_queued=0).max_queued_of(limits) == 0


@pytest.mark.parametrize(("now", "retry_after_s"), [(0.0, 1.0), (7.0, 7.0), (99.0, 30.0)])
def test_a_refusal_says_when_to_come_back(now: float, retry_after_s: float) -> None:
    queue = queue_of(Held(-1, 5.0, "urgent"), Held(0, 0.0, "oldest"))
    answer = admit(queue, Applicants(1), AdmissionSettings(max_queued=2), now)
    assert answer == Refused(RefusalReason.QUEUE_FULL, retry_after_s)


@pytest.mark.parametrize("deadline_at", [-1.0, 0.0])
def test_what_is_past_its_deadline_is_refused(deadline_at: float) -> None:
    answer = admit(FairQueue(), Applicants(1, deadline_at), AdmissionSettings(), now=0.0)
    assert answer == Refused(RefusalReason.DEADLINE, 0.0)
