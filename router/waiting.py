"""The requests of one gateway that wait for a worker: which goes next, where to, and how long it may wait.

Sends nothing and knows no client: what was placed is returned. Order, bounds and places are decided elsewhere here.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

from twinpool.core.errors import InvalidRequest, TwinpoolError
from twinpool.core.messages import Request
from twinpool.router.admission import AdmissionSettings, Held, HeldQueue, Refused, admit
from twinpool.router.demand import CachedTokens, Demand
from twinpool.router.placement import place
from twinpool.router.refusals import expiry, refusal
from twinpool.router.route import Hold, HoldReason, PlacementSettings, Reject, Route
from twinpool.router.views import ClusterView, ViewTable

MAX_HOLD_S = 120.0


@dataclass(frozen=True, slots=True)
class Placing:
    """An attempt that waits for a worker, and what is known about where it should go."""

    request: Request
    arrived_s: float  # gateway clock
    deadline_s: float
    avoid: frozenset[str] = frozenset()
    parked_on: str | None = None

    def age_s(self, now: float) -> float:
        """Of the request at this moment."""
        return max(0.0, now - self.arrived_s)

    def request_at(self, now: float) -> Request:
        """The request, of its age at this moment."""
        return replace(self.request, age_s=self.age_s(now))


class WaitingRoom:
    """Owns the attempts that wait, at most one for each request. Workers are as ``table`` says."""

    def __init__(
        self,
        table: ViewTable,
        placement: PlacementSettings,
        admission: AdmissionSettings,
        cached_tokens: CachedTokens | None = None,
    ) -> None:
        """``cached_tokens``: what the workers have of a request; None: nobody knows."""
        self._table = table
        self._placement = placement
        self._admission = admission
        self._cached_tokens = cached_tokens
        self._queue = HeldQueue()
        self._placings: dict[str, Placing] = {}
        self._held_for: dict[str, HoldReason] = {}
        self._last_held: tuple[Placing | None, int] = (None, 0)  # and the table's version then
        self._turn = 0

    def __len__(self) -> int:
        return len(self._queue)

    def admit(self, num_requests: int, num_promised: int, deadline_s: float, now: float) -> None:
        """Let so many new requests of one call in, or none.

        Where nobody waits the first may go at once; all others will wait, as will the ``num_promised`` that were let in
        before and have not come yet.

        Raises:
            InvalidRequest: they are more than may ever wait; Overloaded: more than may wait now; DeadlineExceeded.
        """
        if num_requests - 1 > self._admission.max_queued:
            reason = f"{num_requests - 1} answers would wait for the first, and only {self._admission.max_queued} may"
            raise InvalidRequest("sampling.n", reason)
        num_new = num_requests if len(self._queue) else num_requests - 1
        if not num_new:
            return
        refused = admit(self._queue, deadline_s, self._admission, now, num_promised + num_new)
        if isinstance(refused, Refused):
            raise refusal(refused)

    def put(self, placing: Placing, now: float) -> None:
        """Have an attempt wait. Its request must not wait already."""
        request = placing.request
        give_up_at = min(now + MAX_HOLD_S, placing.deadline_s)
        self._queue.hold(Held(request.priority, placing.arrived_s, request.request_id, give_up_at))
        self._placings[request.request_id] = placing

    def take(self, request_id: str) -> Placing | None:
        """Let it wait no longer. None: it did not."""
        self._queue.take(request_id)
        self._held_for.pop(request_id, None)
        return self._placings.pop(request_id, None)

    def first(self) -> Placing | None:
        """The one to place next. None: nobody waits."""
        held = self._queue.first()
        return None if held is None else self._placings[held.request_id]

    def place(self, placing: Placing, now: float) -> Route | Reject | None:
        """Where one of those that wait goes now; it waits no longer then. None: it has to wait."""
        held_placing, held_version = self._last_held
        if placing is held_placing and self._table.version == held_version:
            return None  # what it was held for has not changed: whether there is room does not depend on time
        request_id = placing.request.request_id
        view = self._table.snapshot(now)
        demand = self._demand(placing, view, now)
        decision = place(demand, view, self._placement, self._turn)
        if isinstance(decision, Hold):
            self._held_for[request_id] = decision.reason
            self._last_held = (placing, self._table.version)
            return None
        self.take(request_id)
        if isinstance(decision, Route):
            self._turn += 1
            if demand.cached_tokens is not None:
                prefill = bisect_left(view.worker_ids, decision.prefill)
                return replace(decision, cached_tokens=int(demand.cached_tokens[prefill]))
        return decision

    def _demand(self, placing: Placing, view: ClusterView, now: float) -> Demand:
        request = placing.request
        return Demand.of(
            request,
            avoid=placing.avoid,
            parked_on=placing.parked_on,
            age_s=placing.age_s(now),
            cached_tokens=None if self._cached_tokens is None else self._cached_tokens(request, view.worker_ids),
        )

    def reason(self, placing: Placing) -> HoldReason | None:
        """Why it could not be placed when it was last tried. None: it was not tried."""
        return self._held_for.get(placing.request.request_id)

    def take_expired(self, now: float) -> list[tuple[str, TwinpoolError]]:
        """Those that waited too long, who wait no longer, each with what its client is told."""
        expired = []
        for held in self._queue.take_expired(now):
            reason = self._held_for.get(held.request_id, HoldReason.NO_WORKERS)
            is_late = now >= self._placings[held.request_id].deadline_s
            expired.append((held.request_id, expiry(reason, is_late=is_late)))
            self.take(held.request_id)
        return expired
