"""The requests of one priority: whose turn it is among tenants, by virtual time, and first come first served in each.

Knows neither other priorities nor clocks nor workers.
"""

from dataclasses import dataclass, field

from twinpool.router.lazy_heap import LazyHeap


@dataclass(slots=True)
class _Flow:
    """The requests of one tenant, and how far its share has got."""

    tenant: str
    weight: float
    tag: float  # virtual time at which its next request starts
    waiting: LazyHeap[str] = field(default_factory=LazyHeap)
    arrivals: dict[str, float] = field(default_factory=dict)
    is_blocked: bool = False


class FairLevel:
    """Owns the queues of tenants. The tenant whose virtual time is least goes next, and pays ``cost / weight`` for it.

    Start-time fair queueing (Goyal et al., SIGCOMM'96). Between two tenants that both wait, what they got per weight
    differs by at most one largest request per weight of each over any time, and by the larger of the two counted from
    when both began to wait together. The level's own virtual time, at which newcomers begin, grows by
    ``cost / weights of all who wait`` with each request and never falls behind who is next (as in WF2Q+, Bennett and
    Zhang, 1997); so ever new tenants cannot keep one from its turn, as they could if it stood still among equals.

    Flows that have nothing waiting are remembered until the level's time has passed theirs, or until nobody waits.
    """

    def __init__(self) -> None:
        self._now = 0.0  # virtual
        self._flows: dict[str, _Flow] = {}
        self._turns: LazyHeap[str] = LazyHeap()  # flows that wait and may go
        self._resting: LazyHeap[str] = LazyHeap()  # flows without requests whose share is ahead
        self._num_waiting = 0
        self._weights = 0.0  # of flows that wait

    def __len__(self) -> int:
        return self._num_waiting

    def add(self, tenant: str, weight: float, request_id: str, arrived_at: float, *, is_blocked: bool) -> None:
        """Queue a request. ``weight`` counts for a tenant that has nothing waiting; it is over 0."""
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow(tenant, weight, self._now)
        if not flow.waiting:
            flow.weight, flow.tag, flow.is_blocked = weight, max(flow.tag, self._now), is_blocked
            self._weights += weight
            self._resting.drop(tenant)
        flow.waiting.push(request_id, arrived_at)
        flow.arrivals[request_id] = arrived_at
        self._num_waiting += 1
        self._requeue(flow)

    def remove(self, tenant: str, request_id: str) -> None:
        """Take a request out, which must be here. Who got something for it has paid before."""
        flow = self._flows[tenant]
        flow.waiting.drop(request_id)
        del flow.arrivals[request_id]
        self._num_waiting -= 1
        if not flow.waiting:
            self._weights -= flow.weight
            self._resting.push(tenant, flow.tag)
        self._requeue(flow)
        self._catch_up()
        if not self._num_waiting:
            self._forget_all()

    def first(self) -> str | None:
        """The request whose turn it is. None: nobody waits who may go."""
        tenant = self._turns.first()
        return None if tenant is None else self._flows[tenant].waiting.first()

    def pay(self, tenant: str, weight: float, cost: float) -> None:
        """A tenant got something for ``cost``. Where nobody else waits that is nobody's loss, and forgotten."""
        if not self._num_waiting:
            return
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow(tenant, weight, self._now)
        flow.tag += cost / flow.weight
        own = 0.0 if flow.waiting else flow.weight
        self._now += cost / (self._weights + own)
        if flow.waiting:
            self._requeue(flow)
        else:
            self._resting.push(tenant, flow.tag)
        self._catch_up()

    def set_blocked(self, tenant: str, *, is_blocked: bool) -> None:
        """Whether a tenant's turn is left out for now. The time until it may go again earns it nothing."""
        flow = self._flows.get(tenant)
        if flow is not None and flow.waiting and flow.is_blocked != is_blocked:
            flow.is_blocked, flow.tag = is_blocked, max(flow.tag, self._now)
            self._requeue(flow)

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError if it differs."""
        waiting = [flow for flow in self._flows.values() if flow.waiting]
        assert self._num_waiting == sum(len(flow.waiting) for flow in waiting)
        assert abs(self._weights - sum(flow.weight for flow in waiting)) < 1e-6
        assert all(len(flow.arrivals) == len(flow.waiting) for flow in self._flows.values())
        assert len(self._turns) == sum(not flow.is_blocked for flow in waiting)
        assert len(self._resting) == len(self._flows) - len(waiting)

    def _requeue(self, flow: _Flow) -> None:
        """Give a flow its place among the turns; ties go to whose request came first."""
        head = flow.waiting.first()
        if head is None or flow.is_blocked:
            self._turns.drop(flow.tenant)
        else:
            self._turns.push(flow.tenant, (flow.tag, flow.arrivals[head], head))

    def _catch_up(self) -> None:
        """Time does not fall behind who is next, and whose share time has passed needs no memory."""
        key = self._turns.first_key()
        if key is not None:
            self._now = max(self._now, key[0])
        while (tenant := self._resting.first()) is not None and self._flows[tenant].tag <= self._now:
            self._resting.drop(tenant)
            del self._flows[tenant]

    def _forget_all(self) -> None:
        """Nobody waits: what was given before is nobody's loss, and sums start anew, without their rounding."""
        self._now = self._weights = 0.0
        self._flows.clear()
        self._turns, self._resting = LazyHeap(), LazyHeap()
