"""A link between two modelled workers as order-only transports are: no tags, headers compared, one error closes it.

Knows no handoff's rules; it moves groups, and tells both ends when it is torn down.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer import handoff as msg
from twinpool.simulator.handoff_ends import End, Target

if TYPE_CHECKING:
    from twinpool.simulator.handoff_cluster import Cluster

LINK_DEADLINE_S = 2.0


class ModelLink:
    """From the source worker to one target, reopened under another incarnation after it broke."""

    def __init__(self, cluster: "Cluster", target: Target) -> None:
        self.target = target
        self.epochs: set[tuple[str, int]] = set()  # (request, epoch) that go this way
        self._cluster = cluster
        self._incarnation = 0
        self._clear()

    def _clear(self) -> None:
        self._incarnation += 1
        self._is_open = True
        self._num_sent = 0
        self._num_expected = 0
        self._wire: deque[tuple[int, End, ev.Transmit, float]] = deque()
        self._posted: deque[tuple[ev.Receive, End | None, float]] = deque()
        self._is_busy = False

    def carries(self, end: End) -> bool:
        """Whether the end's current epoch goes this way."""
        return (end.machine.request_id, end.machine.epoch) in self.epochs

    def transmit(self, end: End, action: ev.Transmit) -> None:
        """Announce the group and queue its bytes; without a link, say that it is closed."""
        if not self._is_open:
            end.soon(ev.LinkClosed(action.epoch, "no link"))
            return
        now = self._cluster.world.now
        message = msg.Next(end.machine.request_id, action.epoch, self._num_sent, action.span)
        self._num_sent += 1
        self._cluster.deliver(self, message)
        self._wire.append((message.seq, end, action, now))
        self._pump()

    def expect(self, message: msg.Next) -> bool:
        """Whether this is the link's next announcement; a gap means one was lost, and nothing can be matched again."""
        if message.seq == self._num_expected:
            self._num_expected += 1
            return self._is_open
        if message.seq > self._num_expected:
            self.close()
        return False

    def post(self, end: End | None, receive: ev.Receive) -> None:
        """Queue a receive, into an end's blocks or into scratch."""
        if self._is_open:
            self._posted.append((receive, end, self._cluster.world.now))
            self._pump()

    def _pump(self) -> None:
        if self._is_busy or not self._is_open:
            return
        world, incarnation = self._cluster.world, self._incarnation
        if self._wire and self._posted:
            self._is_busy = True
            world.after(world.random.uniform(0.0005, 0.01), lambda: self._move(incarnation))
        elif self._wire or self._posted:
            world.after(LINK_DEADLINE_S * 1.001, lambda: self._expire(incarnation))

    def _expire(self, incarnation: int) -> None:
        if incarnation != self._incarnation or self._is_busy:
            return
        since = [*(item[-1] for item in list(self._wire)[:1]), *(item[-1] for item in list(self._posted)[:1])]
        if since and self._cluster.world.now - min(since) >= LINK_DEADLINE_S:
            self.close()

    def _move(self, incarnation: int) -> None:
        if incarnation != self._incarnation or not self._is_open:
            return
        self._is_busy = False
        (seq, source, sent, started_at), (receive, end, _) = self._wire[0], self._posted[0]
        if seq != receive.seq or sent.span != receive.span:
            self.close()
            return
        self._wire.popleft()
        self._posted.popleft()
        now = self._cluster.world.now
        assert source.holds_blocks, "read after release"
        source.tell(ev.LinkSent(sent.epoch, sent.group, started_at + source.clock_s, now + source.clock_s))
        if end is not None and not receive.discard:
            self._land(source, sent, receive, end)
        self._pump()

    def _land(self, source: End, sent: ev.Transmit, receive: ev.Receive, end: End) -> None:
        is_intact = self._cluster.world.random.random() >= self._cluster.corrupt
        is_own = (end.machine.request_id, end.machine.epoch) == (source.machine.request_id, sent.epoch)
        assert end.holds_blocks, "write after free"
        if is_intact and is_own:  # else the digest, which covers request and epoch, shows it
            span = sent.span
            layers, blocks = range(span.first_layer, span.end_layer), range(span.first_block, span.end_block)
            end.written |= {(layer, block) for layer in layers for block in blocks}
        end.tell(ev.GroupReceived(receive.seq, is_intact and is_own))

    def close(self) -> None:
        """Tear the link down; each side learns of it in its own time, and then it may be opened again."""
        if not self._is_open:
            return
        self._is_open = False
        self._wire.clear()
        self._posted.clear()
        world = self._cluster.world
        first, last = sorted(world.random.uniform(0.001, 0.05) for _ in range(2))
        sides: list[Callable[[], list[End]]] = [
            partial(self._cluster.sources_on, self),
            self.target.live_ends,
        ]
        world.random.shuffle(sides)
        world.after(first, lambda: self._tell(sides[0]))
        world.after(last, lambda: self._tell(sides[1]))
        if self.target.is_alive:
            world.after(last, self._clear)

    def _tell(self, side: Callable[[], list[End]]) -> None:
        for end in side():
            end.tell(ev.LinkClosed(end.machine.epoch, "closed"))
