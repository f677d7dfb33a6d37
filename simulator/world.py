"""A seeded world: one heap of events, a virtual clock, and a network that delays, drops, doubles, reorders and parts.

Everything that happens is a function of the seed. Knows no worker and no request; it reads no real clock.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

Deed = Callable[[], None]


class Timer:
    """One thing that will happen at ``when``, unless cancelled before."""

    __slots__ = ("_deed", "when")

    def __init__(self, when: float, deed: Deed) -> None:
        self.when = when
        self._deed: Deed | None = deed

    def cancel(self) -> None:
        """Make it not happen. May come at any time, more than once."""
        self._deed = None

    def __call__(self) -> None:
        """Do it, once."""
        deed, self._deed = self._deed, None
        if deed is not None:
            deed()


class World:
    """Virtual time. Things due at the same time happen in the order in which they were asked for."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self._heap: list[tuple[float, int, Deed]] = []
        self._num_deeds = 0

    def at(self, when: float, deed: Deed) -> Timer:
        """Do ``deed`` at ``when``, or now if that is past."""
        timer = Timer(max(when, self.now), deed)
        self._num_deeds += 1
        entry: tuple[float, int, Deed] = (timer.when, self._num_deeds, timer)
        heapq.heappush(self._heap, entry)
        return timer

    def after(self, delay_s: float, deed: Deed) -> Timer:
        """Do ``deed`` in ``delay_s`` seconds."""
        return self.at(self.now + delay_s, deed)

    def send(self, delay_s: float, deed: Deed) -> None:
        """As ``after``, of what cannot be cancelled: for the many."""
        self._num_deeds += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._num_deeds, deed))

    @property
    def num_events(self) -> int:
        """Of all that was asked for, cancelled ones included."""
        return self._num_deeds

    def run(self, until: float = math.inf, max_events: int | None = 1_000_000) -> None:
        """Let everything due by ``until`` happen; the clock then stands at ``until``, or at the last event.

        Raises:
            RuntimeError: over ``max_events`` things happened (None: any number may): the world does not come to rest.
        """
        num_events, heap, pop = 0, self._heap, heapq.heappop
        most = math.inf if max_events is None else max_events
        while heap and heap[0][0] <= until:
            self.now, _, deed = pop(heap)
            deed()
            num_events += 1
            if num_events > most:
                raise RuntimeError(f"{max_events} events by {self.now:g} s, and no rest in sight")
        if math.isfinite(until):
            self.now = max(self.now, until)


@dataclass(frozen=True, slots=True)
class Faults:
    """What a network does to messages: delays drawn evenly, and the share that is lost, doubled or out of order."""

    min_delay_s: float = 0.0001
    max_delay_s: float = 0.002
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


class Network:
    """Carries messages between named nodes, in order for each pair and direction but for ``faults``.

    ``faults`` may be replaced at any time. What is on its way to a crashed node is the receiver's to ignore.
    """

    def __init__(self, world: World, faults: Faults) -> None:
        self.faults = faults
        self._world = world
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._parted: set[frozenset[str]] = set()

    def send(self, source: str, target: str, deliver: Deed) -> None:
        """Let ``deliver`` happen at the target after a while: once, unless a fault or a partition says otherwise."""
        draw = self._world.random
        if draw.random() < self.faults.drop:
            return
        copies = 2 if draw.random() < self.faults.duplicate else 1
        for _ in range(copies):
            self._carry(source, target, deliver)

    def _carry(self, source: str, target: str, deliver: Deed) -> None:
        draw, route = self._world.random, (source, target)
        arrival = self._world.now + draw.uniform(self.faults.min_delay_s, self.faults.max_delay_s)
        if draw.random() >= self.faults.reorder:
            arrival = max(arrival, self._last_arrival.get(route, 0.0))
            self._last_arrival[route] = arrival
        self._world.at(arrival, lambda: None if self.is_parted(source, target) else deliver())

    def part(self, one: str, other: str) -> None:
        """Lose everything that would arrive between the two, both ways, until ``mend``."""
        self._parted.add(frozenset((one, other)))

    def mend(self, one: str, other: str) -> None:
        """Let messages pass again; those lost stay lost."""
        self._parted.discard(frozenset((one, other)))

    def is_parted(self, one: str, other: str) -> bool:
        """Whether nothing passes between the two now."""
        return frozenset((one, other)) in self._parted
