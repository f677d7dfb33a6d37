"""Network cards of nodes, and the flows of KV that share them.

Fluid: the bytes of all flows move at once, each at the smaller of its fair shares at both ends. Knows no handoff.
"""

from collections.abc import Callable

from twinpool.simulator.world import Timer, World

_ONE_BYTE = 1.0  # less is rounding


class Card:
    """One node's network card: so many bytes per second each way, shared equally by the flows of that way."""

    __slots__ = ("bytes_per_s", "incoming", "outgoing")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.outgoing: dict[Flow, None] = {}  # ordered, as what happens must not depend on addresses
        self.incoming: dict[Flow, None] = {}


class Flow:
    """Bytes on their way from one card to another; ``done`` is called when all have arrived. More may be added."""

    __slots__ = ("_done", "_ends_s", "_left_bytes", "_rate", "_source", "_target", "_timer", "_updated_s", "_world")

    def __init__(self, world: World, source: Card, target: Card, num_bytes: float, done: Callable[[], None]) -> None:
        self._world = world
        self._source = source
        self._target = target
        self._left_bytes = num_bytes
        self._done = done
        self._rate = 0.0
        self._updated_s = world.now
        self._ends_s = world.now
        self._timer: Timer | None = None
        source.outgoing[self] = target.incoming[self] = None
        self._share_anew()

    def add(self, num_bytes: float) -> None:
        """More is to be sent; the flow must not be over."""
        self._settle()
        self._left_bytes += num_bytes
        self._set_timer()

    def stop(self) -> None:
        """Send no more; ``done`` is not called."""
        if self._timer is not None:
            self._timer.cancel()
        self._leave()

    def _leave(self) -> None:
        self._source.outgoing.pop(self, None)
        self._target.incoming.pop(self, None)
        self._share_anew()

    def _share_anew(self) -> None:
        """The number of flows has changed at both cards: so have the rates of all that touch them."""
        for flow in self._source.outgoing:
            flow._refresh()
        for flow in self._target.incoming:
            if flow._source is not self._source:
                flow._refresh()

    def _refresh(self) -> None:
        source, target = self._source, self._target
        rate = min(source.bytes_per_s / len(source.outgoing), target.bytes_per_s / len(target.incoming))
        if rate != self._rate:
            self._settle()
            self._rate = rate
            self._set_timer()

    def _settle(self) -> None:
        self._left_bytes -= self._rate * (self._world.now - self._updated_s)
        self._updated_s = self._world.now

    def _set_timer(self) -> None:
        """A timer that is too early stays, and is set anew when it is due: most ends are put off several times."""
        self._ends_s = self._world.now + max(0.0, self._left_bytes) / self._rate
        if self._timer is not None:
            if self._timer.when <= self._ends_s:
                return
            self._timer.cancel()
        self._timer = self._world.at(self._ends_s, self._end)

    def _end(self) -> None:
        if self._ends_s > self._world.now:
            self._timer = self._world.at(self._ends_s, self._end)
            return
        self._settle()
        assert self._left_bytes < _ONE_BYTE
        self._leave()
        self._done()
