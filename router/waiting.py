"""The requests of one gateway that wait for a worker: which goes next, where to, and how long it may wait.

Sends nothing and knows no client: what was placed is returned. Order, bounds, rates and places are decided elsewhere
here.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from twinpool.core.errors import DeadlineExceeded, InvalidRequest, Overloaded, TwinpoolError
from twinpool.core.messages import Request
from twinpool.router.admission import AdmissionSettings, Applicants, Refused, admit
from twinpool.router.demand import CachedTokens, Demand
from twinpool.router.fair_queue import FairQueue, Held
from twinpool.router.least_time import least_ttft_s
from twinpool.router.placement import place
from twinpool.router.refusals import expiry, over_rate, refusal
from twinpool.router.room import Need, RoomMemo
from twinpool.router.route import Hold, HoldReason, PlacementSettings, Reject, RejectReason, Route
from twinpool.router.standing import DEFAULT_TENANT, USUAL, Standing
from twinpool.router.tenants import TenantCounts, Tenants
from twinpool.router.view_table import ViewTable
from twinpool.router.views import ClusterView
from twinpool.router.work import work_tokens

MAX_HOLD_S = 120.0
INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Placing:
    """An attempt that waits for a worker, and what is known about where it should go."""

    request: Request
    arrived_s: float  # gateway clock
    deadline_s: float
    avoid: frozenset[str] = frozenset()
    parked_on: str | None = None
    standing: Standing = USUAL

    def age_s(self, now: float) -> float:
        """Of the request at this moment."""
        return max(0.0, now - self.arrived_s)

    def request_at(self, now: float) -> Request:
        """The request, of its age at this moment."""
        return replace(self.request, age_s=self.age_s(now))

    @property
    def is_retry(self) -> bool:
        """Whether it was on workers before, and so has been let in and paid for."""
        return self.request.epoch > 1

    @property
    def first_token_by_s(self) -> float:
        """When its first token is too late, if that has not come."""
        if self.request.num_emitted:
            return self.deadline_s
        return min(self.deadline_s, self.arrived_s + self.standing.deadline_s)


@dataclass(slots=True)
class _Guest:
    placing: Placing
    tenant: str  # as its gateway knows it
    start_by_s: float  # later is too late
    held_for: HoldReason | None = None  # when it was last tried


class WaitingRoom:
    """Owns the attempts that wait, at most one for each request, and what each tenant has. ``table`` says who works."""

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
        self._queue = FairQueue(admission.fair)
        self._tenants = Tenants(admission.tenants)
        self._guests: dict[str, _Guest] = {}
        self._running: dict[str, str] = {}  # the tenants of requests that are on workers, or wait to be so again
        self._memo = RoomMemo()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._queue)

    def admit(self, requests: Sequence[Placing], promised: Sequence[Standing], now: float) -> None:
        """Let the new requests of one call in, or none: answers to one prompt, of one standing.

        Where nobody waits the first may go at once; all others will wait, as will those ``promised`` a place before who
        have not come yet.

        Raises:
            InvalidRequest: they are more than may ever wait; Overloaded: more than may wait now, or than their tenant
            may have now; DeadlineExceeded: they are too late. None was let in.
        """
        first, num = requests[0], len(requests)
        tenant = self._tenants.known_as(first.standing.tenant, now)
        limits = self._tenants.limits_of(tenant)
        most = self._admission.max_queued_of(limits)
        if num - 1 > most:
            reason = f"{num - 1} answers would wait for the first, and only {most} may"
            raise InvalidRequest("sampling.n", reason)
        goes_at_once = not len(self._queue) and self._tenants.may_start(tenant)
        who = Applicants(
            num_requests=num - 1 if goes_at_once else num,
            deadline_at=self._start_by_s(first, now),
            tenant=tenant,
            limits=limits,
            num_promised=len(promised),
            num_promised_of_tenant=sum(one.tenant == first.standing.tenant for one in promised),
        )
        try:
            self._admit(who, first.request.num_prompt_tokens, now)
        except (DeadlineExceeded, Overloaded):
            self._tenants.refused(tenant, num, now)
            raise
        self._tenants.admitted(tenant, num, first.request.num_prompt_tokens, now)

    def _admit(self, who: Applicants, num_prompt_tokens: int, now: float) -> None:
        if who.num_requests or who.deadline_at <= now:
            refused = admit(self._queue, who, self._admission, now)
            if isinstance(refused, Refused):
                raise refusal(refused)
        over = self._tenants.over_rate(who.tenant, num_prompt_tokens, now)
        if over is not None:
            raise over_rate(over)

    def put(self, placing: Placing, now: float) -> None:
        """Have an attempt wait. Its request must not wait already."""
        request, start_by_s = placing.request, self._start_by_s(placing, now)
        request_id = request.request_id
        tenant = self._tenants.known_as(placing.standing.tenant, now)
        held = Held(
            priority=request.priority,
            arrived_at=placing.arrived_s,
            request_id=request_id,
            expires_at=min(now + MAX_HOLD_S, start_by_s),
            tenant=tenant,
            weight=self._tenants.limits_of(tenant).weight,
            cost=0.0 if placing.is_retry else self._cost(request, tenant, now),
            is_retry=placing.is_retry,
        )
        if placing.is_retry:
            self._start(request_id, tenant, now)  # it keeps the place among its tenant's that it had
        self._queue.hold(held, now)
        self._guests[request_id] = _Guest(placing, tenant, start_by_s)

    def take(self, request_id: str, now: float) -> None:
        """It has ended, or is about to be put here again: it waits no longer, and runs no longer. Idempotent."""
        self._queue.take(request_id)
        self._guests.pop(request_id, None)
        tenant = self._running.pop(request_id, None)
        if tenant is not None:
            self._tenants.stopped(tenant, now)
            self._queue.set_blocked(tenant, is_blocked=not self._tenants.may_start(tenant))

    def generated(self, request_id: str, num_tokens: int, now: float) -> None:
        """Tokens of a request that runs came, and are new."""
        tenant = self._running.get(request_id)
        if tenant is not None:
            self._tenants.generated(tenant, num_tokens, now)

    def concluded(self, request_id: str, num_tokens: int, now: float) -> None:
        """Its answer is complete, with so many tokens: `take` it."""
        tenant = self._running.get(request_id)
        if tenant is not None:
            self._tenants.concluded(tenant, num_tokens, now)
        self.take(request_id, now)

    # --- placing --------------------------------------------------------------------------------------------------

    def turns(self, now: float) -> Iterator[Placing]:
        """Those to place now, one after the other, each once. Each must be tried, or taken, before the next."""
        for held in self._queue.turns(now):
            yield self._guests[held.request_id].placing

    def place(self, placing: Placing, now: float) -> Route | Reject | None:
        """Where one of those that wait goes now; it waits no longer then. None: it has to wait, and others may go."""
        request_id = placing.request.request_id
        guest = self._guests[request_id]
        if now >= guest.start_by_s:
            self._tenants.refused(guest.tenant, 1, now)
            self.take(request_id, now)
            return Reject(RejectReason.DEADLINE)
        decision = self._try(guest, now)
        if isinstance(decision, Hold):
            guest.held_for = decision.reason
            self._queue.set_aside(request_id, is_contested=decision.reason.is_contested)
            return None
        if isinstance(decision, Reject):
            self.take(request_id, now)
            return decision
        self._queue.serve(request_id)
        self._start(request_id, guest.tenant, now)
        del self._guests[request_id]
        self._turn += 1
        return decision

    def _try(self, guest: _Guest, now: float) -> Route | Hold | Reject:
        placing, version = guest.placing, self._table.version
        need = Need.of(placing.request, placing.parked_on)
        hold = None if guest.held_for is None else self._memo.recall(need, version)
        if hold is not None:
            return hold
        view = self._table.snapshot(now)
        demand = self._demand(placing, view, now)
        decision = place(demand, view, self._placement, self._turn)
        if isinstance(decision, Hold):
            self._memo.note(need, version, decision)
        if isinstance(decision, Route) and demand.cached_tokens is not None:
            prefill = bisect_left(view.worker_ids, decision.prefill)
            return replace(decision, cached_tokens=int(demand.cached_tokens[prefill]))
        return decision

    def reason(self, placing: Placing) -> HoldReason | None:
        """Why it could not be placed when it was last tried. None: it was not tried."""
        guest = self._guests.get(placing.request.request_id)
        return None if guest is None else guest.held_for

    def take_expired(self, now: float) -> list[tuple[str, TwinpoolError]]:
        """Those that waited too long, who wait no longer, each with what its client is told."""
        expired = []
        for held in self._queue.take_expired(now):
            guest = self._guests[held.request_id]
            is_late = now >= guest.start_by_s
            expired.append((held.request_id, expiry(guest.held_for or HoldReason.NO_WORKERS, is_late=is_late)))
            self._tenants.refused(guest.tenant, 1, now)
            self.take(held.request_id, now)
        return expired

    def tenants(self) -> Mapping[str, tuple[int, TenantCounts]]:
        """(requests that wait, the other counts) by tenant; where nobody named or limited any, of nobody."""
        counts = self._tenants.counts()
        if not self._admission.tenants and set(counts) <= {DEFAULT_TENANT}:
            return {}
        return {name: (self._queue.num_of(name), one) for name, one in counts.items()}

    def _start(self, request_id: str, tenant: str, now: float) -> None:
        if request_id not in self._running:
            self._running[request_id] = tenant
            self._tenants.started(tenant, now)
            self._queue.set_blocked(tenant, is_blocked=not self._tenants.may_start(tenant))

    def _cost(self, request: Request, tenant: str, now: float) -> float:
        num_output = self._tenants.expected_output_tokens(tenant, request.max_new_tokens, now)
        return work_tokens(len(request.token_ids), num_output, request.goal.tpot_s)

    def _start_by_s(self, placing: Placing, now: float) -> float:
        """When it must have gone to workers for its first token to come in time, as far as can be known."""
        by_s = placing.first_token_by_s
        if by_s == INFINITY or not self._placement.latencies:
            return by_s
        view = self._table.snapshot(now)
        demand, knows = self._demand(placing, view, now), self._cached_tokens is not None
        return by_s - least_ttft_s(demand, view.kinds, self._placement.latencies, knows_caches=knows)

    def _demand(self, placing: Placing, view: ClusterView, now: float) -> Demand:
        request = placing.request
        return Demand.of(
            request,
            avoid=placing.avoid,
            parked_on=placing.parked_on,
            age_s=placing.age_s(now),
            cached_tokens=None if self._cached_tokens is None else self._cached_tokens(request, view.worker_ids),
            on_miss=placing.standing.on_miss,
        )
