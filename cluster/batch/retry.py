"""What follows when a request of a batch fails, and how long a batch waits for a cluster that does not answer.

Reads no clock: ``now`` is an argument.
"""

from dataclasses import dataclass, field
from enum import Enum

from twinpool.client.errors import ConnectionFailed
from twinpool.cluster.batch.line import Key
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
    """How long the whole batch has heard nothing but "not now"; a request that the cluster takes starts it anew.

    Whether a request was taken is known only when it ends. So those that were asked before the limit passed are waited
    for, and what becomes of them decides.
    """

    limit_s: float
    _since: float | None = None
    _asked: dict[Key, float] = field(default_factory=dict)  # requests that have not ended, to when they were sent

    def asked(self, key: Key, now: float) -> None:
        """Note that a request was sent."""
        self._asked[key] = now

    def taken(self, key: Key) -> None:
        """Note that a request ended otherwise than with "not now", be it in an answer or a failure."""
        del self._asked[key]
        self._since = None

    def refused(self, key: Key, now: float) -> float:
        """Note that the cluster was away or full for a request, and return for how many seconds it has been."""
        del self._asked[key]
        if self._since is None:
            self._since = now
        return now - self._since

    def is_over(self, now: float) -> bool:
        """Whether it has been away or full for longer than the limit, and takes none of the requests under way."""
        if self._since is None or now - self._since <= self.limit_s:
            return False
        return all(asked_at > self._since + self.limit_s for asked_at in self._asked.values())
