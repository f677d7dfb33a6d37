"""What follows when a request of a batch fails, and how long a batch waits for a cluster that does not answer.

Reads no clock: ``now`` is an argument.
"""

from dataclasses import dataclass
from enum import Enum

from twinpool.client.errors import ConnectionFailed
from twinpool.core.errors import (
    AttemptsExhausted,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NoWorkers,
    Overloaded,
    TwinpoolError,
    Unauthenticated,
)

MAX_TRIES = 3  # of a request that the cluster fails, where another try may do better
MAX_LEFT = 100  # requests left in a row, none answered between: the cluster is broken, and the run ends
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0


class Consequence(Enum):
    """What a request's failure means."""

    FINAL = "final"  # it can never succeed: it is answered with its problem
    WAIT = "wait"  # the cluster is away or full: try again until the batch's patience ends
    AGAIN = "again"  # try a few times, then leave it unanswered for another run
    LEAVE = "leave"  # leave it unanswered at once
    STOP = "stop"  # no request of this batch can succeed


def judge(error: TwinpoolError) -> Consequence:
    """Say what follows. A request that used up the cluster's own attempts may be what kills its workers."""
    match error:
        case InvalidRequest() | ModelNotFound():
            return Consequence.FINAL
        case ConnectionFailed() | NoWorkers() | Overloaded():
            return Consequence.WAIT
        case AttemptsExhausted():
            return Consequence.LEAVE
        case Unauthenticated() | Forbidden():
            return Consequence.STOP
        case _:
            return Consequence.AGAIN


def pause_s(num_failures: int, error: TwinpoolError | None = None) -> float:
    """Seconds to wait after the n-th failure in a row: twice as long each time, and never less than was asked for."""
    asked = getattr(error, "retry_after_s", 0.0)
    doubled: float = FIRST_PAUSE_S * 2 ** min(num_failures - 1, 20)
    return min(max(doubled, asked), LONGEST_PAUSE_S)


@dataclass(slots=True)
class Patience:
    """How long the whole batch has heard nothing but "not now"; any answer starts it anew."""

    limit_s: float
    _since: float | None = None

    def answered(self) -> None:
        """Note that the cluster answered a request, whatever it said."""
        self._since = None

    def waited_s(self, now: float) -> float:
        """Note that the cluster was away or full, and return for how long it has been."""
        if self._since is None:
            self._since = now
        return now - self._since

    def is_over(self, now: float) -> bool:
        """Whether it has been away or full for longer than the limit."""
        return self._since is not None and now - self._since > self.limit_s
