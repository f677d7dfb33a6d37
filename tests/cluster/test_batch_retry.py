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


def test_patience_ends_when_nothing_was_answered_for_so_long() -> None:
    patience = Patience(10.0)
    assert not patience.is_over(1e9)
    assert patience.waited_s(100.0) == 0
    assert patience.waited_s(110.0) == 10
    assert not patience.is_over(110.0)
    assert patience.is_over(110.1)
    patience.answered()
    assert not patience.is_over(1e9)
    assert patience.waited_s(120.0) == 0
