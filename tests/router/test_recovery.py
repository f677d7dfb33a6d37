"""Whom the next attempt avoids."""

import pytest

from twinpool.core.messages import FailureKind
from twinpool.router.recovery import culprits_of
from twinpool.router.route import Route

PAIR = Route("p", "d", "test")


@pytest.mark.parametrize(
    ("kind", "from_worker", "culprits"),
    [
        (FailureKind.PREEMPTED, "d", ""),
        (FailureKind.TRANSFER_FAILED, "p", "d"),
        (FailureKind.PEER_LOST, "d", "p"),
        (FailureKind.CORRUPTED, "d", "dp"),
        (FailureKind.INTERNAL, "d", "d"),
        (FailureKind.UNANSWERABLE, "d", ""),
        (FailureKind.WORKER_LOST, "p", "p"),
    ],
)
def test_each_kind_of_failure_points_at_its_culprits(kind: FailureKind, from_worker: str, culprits: str) -> None:
    assert culprits_of(PAIR, kind, from_worker) == frozenset(culprits)


def test_a_local_plan_has_no_peer_to_blame() -> None:
    assert culprits_of(Route("d", "d", "test"), FailureKind.PEER_LOST, "d") == frozenset()
