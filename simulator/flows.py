"""Network cards of nodes, and the flows of KV that share them.

Fluid: the bytes of all flows move at once, each at the smaller of its fair shares at both ends. Knows no handoff.
"""

import math
from collections.abc import Callable
from operator import attrgetter

from twinpool.simulator.world import Timer, World

_ONE_BYTE = 1.0  # less is rounding


class Card:
    """One node's network card: so many bytes per second each way, shared equally by the flows of that way.

    One timer stands for all flows that come in: the first of them to end. When it does the others' rates change, and
    the next one is known; so a card with many flows does not set as many timers whenever one comes or goes.
    """

    __slots__ = ("_timer", "bytes_per_s", "incoming", "outgoing")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.outgoing: dict[Flow, None] = {}  # ordered, as what happens must not depend on addresses
        self.incoming: dict[Flow, None] = {}
        self._timer: Timer | None = None

    def set_timer(self, world: World) -> None:
        """The ends of incoming flows have changed. A timer that is too early stays, and is set anew when it is due."""
        ends_s = min([flow.ends_s for flow in self.incoming], default=math.inf)
        if self._timer is not None:
            if self._timer.when <= ends_s < math.inf:
                return
            self._timer.cancel()
        self._timer = None if ends_s == math.inf else world.at(ends_s, lambda: self._due(world))

    def _due(self, world: World) -> None:
        self._timer = None
        first = min(self.incoming, key=_ends_s)
        if first.ends_s > world.now:
            self.set_timer(world)
        else:
            first.end()


class Flow:
    """Bytes on their way from one card to another; ``done`` is called when all have arrived. More may be added."""

    __slots__ = ("_done", "_left_bytes", "_rate", "_source", "_target", "_updated_s", "_world", "ends_s")

    def __init__(self, world: World, source: Card, target: Card, num_bytes: float, done: Callable[[], None]) -> None:
        self._world = world
        self._source = source
        self._target = target
        self._left_bytes = num_bytes
        self._done = done
        self._rate = 0.0
        self._updated_s = world.now
        self.ends_s = math.inf  # as things are
        source.outgoing[self] = target.incoming[self] = None
        self._share_anew()

    def add(self, num_bytes: float) -> None:
        """More is to be sent; the flow must not be over."""
        self._settle()
        self._left_bytes += num_bytes
        self._foresee()
        self._target.set_timer(self._world)

    def stop(self) -> None:
        """Send no more; ``done`` is not called."""
        self._source.outgoing.pop(self, None)
        self._target.incoming.pop(self, None)
        self._share_anew()

    def end(self) -> None:
        """All bytes are there."""
        self._settle()
        assert self._left_bytes < _ONE_BYTE
        self.stop()
        self._done()

    def _share_anew(self) -> None:
        """The number of flows has changed at both cards: so have the rates of all that touch them."""
        targets = {self._target: None}
        for flow in self._source.outgoing:
            flow._refresh()
            targets[flow._target] = None
        for flow in self._target.incoming:
            if flow._source is not self._source:
                flow._refresh()
        for target in targets:
            target.set_timer(self._world)

    def _refresh(self) -> None:
        source, target = self._source, self._target
        rate = min(source.bytes_per_s / len(source.outgoing), target.bytes_per_s / len(target.incoming))
        if rate != self._rate:
            self._settle()
            self._rate = rate
            self._foresee()

    def _settle(self) -> None:
        self._left_bytes -= self._rate * (self._world.now - self._updated_s)
        self._updated_s = self._world.now

    def _foresee(self) -> None:
        self.ends_s = self._updated_s + max(0.0, self._left_bytes) / self._rate


_ends_s = attrgetter("ends_s")
