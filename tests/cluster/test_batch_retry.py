"""What follows a failed request, and how long a batch waits."""

import pytest

from twinpool.client.errors import ConnectionFailed
from twinpool.cluster.batch.retry import LONGEST_PAUSE_S, Consequence, Patience, judge, pause_s
from twinpool.core.errors import (
    AttemptsExhausted,
    Cancelled,
    Corrupted,
    DeadlineExceeded,
    Forbidden,
    Internal,
    InvalidRequest,
    ModelNotFound,
    NoWorkers,
    Overloaded,
    TwinpoolError,
    Unauthenticated,
)


@pytest.mark.parametrize(
    ("error", "consequence"),
    [
        (InvalidRequest("text", "is empty"), Consequence.FINAL),
        (ModelNotFound("x", ("y",)), Consequence.FINAL),
        (ConnectionFailed("127.0.0.1:1", "refused"), Consequence.WAIT),
        (NoWorkers("decode"), Consequence.WAIT),
        (Overloaded("queue", 1.0), Consequence.WAIT),
        (AttemptsExhausted("3 attempts failed"), Consequence.LEAVE),
        (DeadlineExceeded("queued"), Consequence.AGAIN),
        (Corrupted("twice"), Consequence.AGAIN),
        (Internal("a bug"), Consequence.AGAIN),
        (Cancelled("by an operator"), Consequence.AGAIN),
        (Unauthenticated("who?"), Consequence.STOP),
        (Forbidden("no"), Consequence.STOP),
    ],
)
def test_only_what_can_never_succeed_is_final(error: TwinpoolError, consequence: Consequence) -> None:
    assert judge(error) is consequence


def test_pauses_double_up_to_a_limit_and_are_never_shorter_than_asked() -> None:
    assert [pause_s(count) for count in (1, 2, 3)] == [0.2, 0.4, 0.8]
    assert pause_s(1, Overloaded("queue", 3.0)) == 3.0
    assert pause_s(1_000_000) == LONGEST_PAUSE_S == pause_s(1, Overloaded("queue", 1e9))


def refused(patience: Patience, now: float) -> float:
    patience.asked("again", now)
    return patience.refused("again", now)


def test_patience_ends_when_nothing_was_taken_for_so_long() -> None:
    patience = Patience(10.0)
    assert not patience.is_over(1e9)
    assert refused(patience, 100.0) == 0
    assert refused(patience, 110.0) == 10
    assert not patience.is_over(110.0)
    assert patience.is_over(110.1)
    patience.asked("taken", 110.2)
    patience.taken("taken")
    assert not patience.is_over(1e9)
    assert refused(patience, 120.0) == 0


def test_patience_outlasts_the_requests_that_were_asked_before_its_limit() -> None:
    patience = Patience(10.0)
    patience.asked("slow", 95.0)
    patience.asked("held", 109.0)
    refused(patience, 100.0)
    assert refused(patience, 500.0) == 400
    assert not patience.is_over(500.0)
    patience.refused("held", 500.0)
    assert not patience.is_over(500.0)
    patience.taken("slow")
    assert not patience.is_over(500.0)


def test_patience_is_over_once_none_of_them_was_taken_however_many_were_asked_since() -> None:
    patience = Patience(10.0)
    patience.asked("held", 95.0)
    refused(patience, 100.0)
    patience.asked("later", 110.5)
    assert not patience.is_over(111.0)
    patience.refused("held", 215.0)
    assert patience.is_over(215.0)
