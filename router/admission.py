"""Which requests may wait for a worker, in which order, and for how long.

Knows no worker and no token; `now` is seconds of the gateway's monotonic clock.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from enum import StrEnum

INFINITY = float("inf")


class RefusalReason(StrEnum):
    """Which bound refused a request."""

    QUEUE_FULL = "the router's queue is full"
    DEADLINE = "its deadline has passed"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may wait."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request may not wait; ``retry_after_s`` is how long the queue takes to move on, as far as can be told."""

    reason: RefusalReason
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Bounds of one gateway's queue."""

    max_queued: int = 1024
    min_retry_after_s: float = 1.0
    max_retry_after_s: float = 30.0


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """A request that waits to be placed; the smallest goes first. A retry keeps its first arrival."""

    priority: int  # smaller goes first
    arrived_at: float
    request_id: str
    deadline_at: float = field(default=INFINITY, compare=False)


class HeldQueue:
    """Owns the requests that wait to be placed, at most one per id."""

    def __init__(self) -> None:
        self._in_order: list[Held] = []
        self._by_id: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._in_order)

    def hold(self, held: Held) -> None:
        """Add a request; its id must not be held. Bounds are for `admit`: what was admitted once may come back."""
        assert held.request_id not in self._by_id, f"{held.request_id} is held"
        self._by_id[held.request_id] = held
        insort(self._in_order, held)

    def first(self) -> Held | None:
        """The request to place next. None: nothing waits."""
        return self._in_order[0] if self._in_order else None

    def take(self, request_id: str) -> Held | None:
        """Remove a request: it was placed, refused or cancelled. None: it is not held."""
        held = self._by_id.pop(request_id, None)
        if held is not None:
            del self._in_order[bisect_left(self._in_order, held)]
        return held

    def take_expired(self, now: float) -> list[Held]:
        """Remove all requests whose deadline has come, first in order first."""
        expired = [held for held in self._in_order if held.deadline_at <= now]
        for held in expired:
            self.take(held.request_id)
        return expired

    def oldest_wait_s(self, now: float) -> float:
        """How long the request that came first has waited; 0 when nothing waits."""
        return max(0.0, now - min((held.arrived_at for held in self._in_order), default=now))


def admit(
    queue: HeldQueue, deadline_at: float, settings: AdmissionSettings, now: float, num_requests: int = 1
) -> Admitted | Refused:
    """Whether so many more requests may wait, all or none. Changes nothing.

    The queue moves about as fast as its oldest request waited, so a refused one is asked to come back after that time.
    """
    if deadline_at <= now:
        return Refused(RefusalReason.DEADLINE, 0.0)
    if len(queue) + num_requests > settings.max_queued:
        wait_s = queue.oldest_wait_s(now)
        return Refused(
            RefusalReason.QUEUE_FULL, min(settings.max_retry_after_s, max(settings.min_retry_after_s, wait_s))
        )
    return Admitted()
