"""The requests of one gateway that wait to be placed: by priority that grows with waiting, fair between tenants.

Knows no worker and no place; ``now`` is seconds of the gateway's clock, which may jump.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from twinpool.router.fair_level import FairLevel
from twinpool.router.lazy_heap import LazyHeap

INFINITY = float("inf")
TOP_LEVEL = -1  # of high priority: nothing rises beyond


@dataclass(frozen=True, slots=True)
class FairSettings:
    """How requests of unequal standing wait together."""

    aging_s: float = 30.0  # who has waited so long rises by one priority
    max_overtaken: int = 16  # so many of the same priority or below go before one that found no place; then none
    max_aside: int = 4  # so many of one priority and above may be overtaken at a time; 1: none is


@dataclass(frozen=True, slots=True)
class Held:
    """A request that waits to be placed. A retry keeps its first arrival, costs nothing and is not held back."""

    priority: int  # smaller goes first
    arrived_at: float
    request_id: str
    expires_at: float = INFINITY  # it must have been placed by then
    tenant: str = ""
    weight: float = 1.0  # its tenant's
    cost: float = 0.0  # what its tenant pays when it is placed (see work.py)
    is_retry: bool = False


@dataclass(slots=True)
class _Waiting:
    held: Held
    level: int  # its priority, and how far it rose


@dataclass(slots=True)
class _Aside:
    """One that was tried, found no place and is overtaken now."""

    number: int  # in the order in which they were set aside
    is_contested: bool = True  # those who overtake it take what it lacks
    overtaken: int = 0


class FairQueue:
    """Owns the requests that wait, at most one per id.

    Who goes next: the highest priority first. A request rises by one priority for each ``aging_s`` it waits, up to the
    highest there is, so that none waits for ever behind better ones. Within a priority tenants share by weight
    (`FairLevel`), and each tenant's requests go in order of arrival; retries, which were paid for, have a turn of
    their own that costs nothing.

    One that finds no place is set aside: it is tried first whenever its priority is due, and meanwhile others may go,
    a bounded number of times (`FairSettings`). Then those of its priority and below wait until it has gone, so that
    what frees up gathers for it.
    """

    def __init__(self, settings: FairSettings = FairSettings()) -> None:
        self._settings = settings
        self._waiting: dict[str, _Waiting] = {}
        self._levels: dict[int, FairLevel] = {}
        self._aside: dict[str, _Aside] = {}
        self._num_aside = 0  # ever
        self._rises: LazyHeap[str] = LazyHeap()
        self._expiries: LazyHeap[str] = LazyHeap()
        self._arrivals: LazyHeap[str] = LazyHeap()
        self._blocked: set[str] = set()
        self._of_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def num_of(self, tenant: str) -> int:
        """How many of a tenant's requests wait."""
        return self._of_tenant[tenant]

    def level_of(self, request_id: str) -> int:
        """The priority that one who waits has reached; smaller goes first."""
        return self._waiting[request_id].level

    def oldest_wait_s(self, now: float) -> float:
        """How long the request that came first has waited; 0 when nothing waits."""
        arrived_at = self._arrivals.first_key()
        return 0.0 if arrived_at is None else max(0.0, now - arrived_at)

    # --- coming and going -----------------------------------------------------------------------------------------

    def hold(self, held: Held, now: float) -> None:
        """Add a request; its id must not be held. Bounds are for `admit`: what was admitted once may come back."""
        request_id = held.request_id
        assert request_id not in self._waiting, f"{request_id} is held"
        self._waiting[request_id] = _Waiting(held, held.priority)
        self._of_tenant[held.tenant] += 1
        self._arrivals.push(request_id, held.arrived_at)
        if held.expires_at < INFINITY:
            self._expiries.push(request_id, held.expires_at)
        if held.priority > TOP_LEVEL:
            self._rises.push(request_id, now + self._settings.aging_s)
        self._enter(held, held.priority)

    def take(self, request_id: str) -> Held | None:
        """Remove a request that was cancelled or refused; nobody pays. None: it is not held."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return None
        held = waiting.held
        for order in (self._arrivals, self._expiries, self._rises):
            order.drop(request_id)
        self._of_tenant[held.tenant] -= 1
        if not self._of_tenant[held.tenant]:
            del self._of_tenant[held.tenant]
        if self._aside.pop(request_id, None) is None:
            self._leave(held, waiting.level)
        return held

    def serve(self, request_id: str) -> Held:
        """Remove a request that was placed: its tenant pays, and those whom it overtook have been so once more."""
        waiting, own = self._waiting[request_id], self._aside.get(request_id)
        for other_id, aside in self._aside.items():
            if self._is_overtaken(other_id, aside, waiting, own):
                aside.overtaken += 1
        held = waiting.held
        level = self._levels.get(waiting.level)
        if level is not None and held.cost:
            level.pay(_flow(held), held.weight, held.cost)
        self.take(request_id)
        return held

    def set_aside(self, request_id: str, *, is_contested: bool = True) -> None:
        """One that was tried found no place: others may overtake it now.

        ``is_contested``: those take what it lacks, so that they are counted.
        """
        aside = self._aside.get(request_id)
        if aside is None:
            aside = self._aside[request_id] = _Aside(self._num_aside)
            self._num_aside += 1
            waiting = self._waiting[request_id]
            self._leave(waiting.held, waiting.level)
        aside.is_contested = is_contested

    def set_blocked(self, tenant: str, *, is_blocked: bool) -> None:
        """Whether a tenant has as much running as it may: then only its retries can go."""
        if is_blocked == (tenant in self._blocked):
            return
        (self._blocked.add if is_blocked else self._blocked.discard)(tenant)
        for level in self._levels.values():
            level.set_blocked(tenant, is_blocked=is_blocked)

    def take_expired(self, now: float) -> list[Held]:
        """Remove all that must have been placed by now, who had to be first first."""
        expired = []
        while (request_id := self._expiries.first()) is not None:
            held = self._waiting[request_id].held
            if held.expires_at > now:
                break
            self.take(request_id)
            expired.append(held)
        return expired

    # --- order ----------------------------------------------------------------------------------------------------

    def turns(self, now: float) -> Iterator[Held]:
        """Those to try to place now, best first, each once.

        Before the next is asked for, the one before must have been served, taken or set aside.
        """
        self._rise(now)
        tried: set[str] = set()
        while (request_id := self._next(tried)) is not None:
            tried.add(request_id)
            yield self._waiting[request_id].held

    def _next(self, tried: set[str]) -> str | None:
        number = self._first_level()
        head = None if number is None else self._levels[number].first()
        if not self._aside:
            return None if head in tried else head
        aside = self._asides_that_may_go()
        barrier = min((level for level, _, name in aside if name in tried and self._is_worn(name)), default=INFINITY)
        due_level, due = next(((level, name) for level, _, name in aside if name not in tried), (INFINITY, None))
        if number is not None and number < due_level and head not in tried:
            has_slot = sum(level <= number for level, _, _ in aside) < self._settings.max_aside
            due_level, due = (number, head) if has_slot else (due_level, due)
        return due if due_level < barrier else None

    def _asides_that_may_go(self) -> list[tuple[int, int, str]]:
        """(level, number, id) of each, in the order in which they are tried."""
        waiting = ((self._waiting[name], name) for name in self._aside)
        return sorted((one.level, self._aside[name].number, name) for one, name in waiting if self._may_go(one.held))

    def _is_worn(self, request_id: str) -> bool:
        return self._aside[request_id].overtaken >= self._settings.max_overtaken

    def _first_level(self) -> int | None:
        return min((number for number, level in self._levels.items() if level.first() is not None), default=None)

    def _may_go(self, held: Held) -> bool:
        return held.is_retry or held.tenant not in self._blocked

    def _is_overtaken(self, request_id: str, aside: _Aside, by: _Waiting, own: _Aside | None) -> bool:
        """By one of its own or a lower priority, that was not before it anyway."""
        waiting = self._waiting[request_id]
        is_later = own is None or own.number > aside.number
        return is_later and aside.is_contested and waiting.level <= by.level and self._may_go(waiting.held)

    def _rise(self, now: float) -> None:
        """Who has waited long enough rises. The order of two who rise at once does not matter: they join others."""
        while (request_id := self._rises.first()) is not None:
            due_at = self._rises.first_key()
            if due_at > now:
                return
            waiting = self._waiting[request_id]
            is_aside = request_id in self._aside
            if not is_aside:
                self._leave(waiting.held, waiting.level)
            waiting.level -= 1
            if not is_aside:
                self._enter(waiting.held, waiting.level)
            if waiting.level > TOP_LEVEL:
                self._rises.push(request_id, due_at + self._settings.aging_s)
            else:
                self._rises.drop(request_id)

    def _enter(self, held: Held, number: int) -> None:
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = FairLevel()
        level.add(_flow(held), held.weight, held.request_id, held.arrived_at, is_blocked=not self._may_go(held))

    def _leave(self, held: Held, number: int) -> None:
        level = self._levels[number]
        level.remove(_flow(held), held.request_id)
        if not len(level):
            del self._levels[number]

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError if it differs."""
        for level in self._levels.values():
            level.check()
        queued = sum(map(len, self._levels.values()))
        assert queued + len(self._aside) == len(self._waiting) == len(self._arrivals)
        assert self._aside.keys() <= self._waiting.keys()
        assert self._of_tenant == Counter(waiting.held.tenant for waiting in self._waiting.values())
        assert all(waiting.level >= min(TOP_LEVEL, waiting.held.priority) for waiting in self._waiting.values())


def _flow(held: Held) -> str:
    """Whose turn it takes: a tenant's own, or that of its retries. No tenant's name has such a character."""
    return f"{held.tenant}\0" if held.is_retry else held.tenant
