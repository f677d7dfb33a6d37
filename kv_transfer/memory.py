"""Links inside one process, with no thread of their own: a group moves when both ends have posted it.

For tests and deterministic worlds, which tell the network what shall befall which group. A group is one chunk, with the
header and digest that any link has. Knows no transport.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from twinpool.kv_transfer.coder import Coder, aligned_bytes
from twinpool.kv_transfer.header import (
    HEADER_BYTES,
    Bytes,
    ChunkHeader,
    HeaderError,
    data_digest,
    handoff_id,
    is_intact,
    pack_header,
)
from twinpool.kv_transfer.link import BlockIds, Group, LinkEvents, Ticket
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.model.kv_layout import KVCache


@dataclass(slots=True, eq=False)
class _Parcel:
    """A group on its way."""

    group: Group
    number: int  # on the link
    fault: Fault | None
    data: Bytes | None = None  # once it has left its blocks


class MemoryLinks:
    """Makes memory links for one worker (see Links); workers reach each other through ``network``."""

    kind = "memory"

    def __init__(self, network: MemoryNetwork, cache: KVCache, *, why: str = "", digest: bool = True) -> None:
        self.why = why
        self._network = network
        self._cache = cache
        self._digest = digest

    def listen(self, events: LinkEvents) -> tuple["MemoryReceiveLink", Ticket]:
        """See Links."""
        with self._network.lock:
            connection = _Connection(self._network)
            link = MemoryReceiveLink(connection, self._cache, events, digest=self._digest)
            connection.target = link
            return link, Ticket("", 0, self._network.put(connection))

    def dial(self, ticket: Ticket, events: LinkEvents) -> "MemorySendLink":
        """See Links."""
        with self._network.lock:
            connection: _Connection | None = self._network.take(ticket.secret)
            link = MemorySendLink(connection or _Connection(self._network), self._cache, events, digest=self._digest)
            if connection is None:
                link.fail("no such ticket, or it was used")
            else:
                connection.meet(link)
            return link


class _End:
    """What both ends have in common. Every method holds the network's lock."""

    def __init__(self, connection: "_Connection", cache: KVCache, events: LinkEvents, *, digest: bool) -> None:
        self.connection = connection
        self.cache = cache
        self.events = events
        self.digest = digest
        self.pending: deque[Group] = deque()  # posted here and not over
        self.is_over = False
        self.coder = Coder()
        self._call_off: Callable[[], None] | None = None
        self._watch()

    def close(self) -> None:
        """See Link."""
        with self.connection.network.lock:
            if not self.is_over:
                self._finish()
                self.connection.fail("closed by the other end")

    def join(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing is left to wait for
        """See Link."""
        return self.is_over

    def fail(self, reason: str) -> None:
        """The link is lost at this end."""
        if not self.is_over:
            self.events.on_error(reason)
            self._finish()

    def post(self, group: Group) -> bool:
        """Note a group; False when the link is over."""
        if not self.is_over:
            self.pending.append(group)
            self._watch()
        return not self.is_over

    def _finish(self) -> None:
        self.is_over = True
        self.pending.clear()
        if self._call_off is not None:
            self._call_off()
        self.events.on_closed()

    def _watch(self) -> None:
        """See that what is oldest now does not stay for another ``timeout_s``."""
        if self._call_off is not None:
            return
        oldest = self.pending[0] if self.pending else None
        network = self.connection.network
        self._call_off = network.schedule(network.timeout_s, lambda: self._expire(oldest))

    def _expire(self, oldest: Group | None) -> None:
        with self.connection.network.lock:
            self._call_off = None
            if self.is_over:
                return
            is_stuck = not self.connection.is_open if oldest is None else oldest in self.pending
            if is_stuck:
                what = "the other end" if oldest is None else f"group {oldest.seq}"
                self.connection.fail(f"timed out waiting for {what}")
            elif self.pending:
                self._watch()


class MemorySendLink(_End):
    """The source's end (see SendLink)."""

    def send(self, group: Group) -> None:
        """See SendLink."""
        with self.connection.network.lock:
            if self.post(group):
                self.connection.send(group)


class MemoryReceiveLink(_End):
    """The target's end (see ReceiveLink)."""

    def receive(self, group: Group) -> None:
        """See ReceiveLink."""
        with self.connection.network.lock:
            if self.post(group):
                self.connection.pump()


class _Connection:
    """Two ends and what is between them."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.source: MemorySendLink | None = None
        self.target: MemoryReceiveLink | None = None
        self._parcels: deque[_Parcel] = deque()
        self._overtaken: _Parcel | None = None
        self._num_sent = 0
        self._num_received = 0
        self._is_delayed = False
        self._is_pumping = False

    @property
    def is_open(self) -> bool:
        return self.source is not None and self.target is not None

    def meet(self, source: MemorySendLink) -> None:
        """The source came with the ticket."""
        assert self.target is not None
        self.source = source
        self.target.events.on_open()
        source.events.on_open()

    def fail(self, reason: str) -> None:
        """The link is lost at every end that is not over yet."""
        self.network.forget(self)
        for end in (self.source, self.target):
            if end is not None:
                end.fail(reason)

    def send(self, group: Group) -> None:
        """Put a group on its way, with the fault that is due."""
        parcel = _Parcel(group, self._num_sent, self.network.next_fault())
        self._num_sent += 1
        if parcel.fault is Fault.REORDER:
            self._overtaken = parcel
            return
        if parcel.fault is not Fault.DROP:
            self._parcels.append(parcel)
        if parcel.fault is Fault.DELAY:
            self._is_delayed = True
            self.network.delay(self.resume)
        if self._overtaken is not None:
            self._parcels.append(self._overtaken)
            self._overtaken = None
        self.pump()

    def resume(self) -> None:
        """The delay is over."""
        self._is_delayed = False
        self.pump()

    def pump(self) -> None:
        """Deliver while both ends have posted; events may post more from within."""
        if self._is_pumping or self.source is None or self.target is None:
            return
        self._is_pumping = True
        try:
            while self._parcels and self.target.pending and not self._is_delayed and not self.target.is_over:
                self._deliver(self._parcels.popleft(), self.source, self.target)
        finally:
            self._is_pumping = False

    def _deliver(self, parcel: _Parcel, source: MemorySendLink, target: MemoryReceiveLink) -> None:
        started_s = time.monotonic()
        is_first = parcel.data is None
        data = _gathered(source, parcel.group) if parcel.data is None else parcel.data
        if parcel.fault is Fault.DUPLICATE and is_first:
            self._parcels.appendleft(replace(parcel, data=data))
        header = np.empty(HEADER_BYTES, dtype=np.uint8)
        sent = _header(parcel.group, parcel.number, len(data))
        if parcel.fault is Fault.MISLABEL:
            sent = replace(sent, handoff=handoff_id(parcel.group.request_id + "'"))
        pack_header(replace(sent, digest=data_digest(data) if source.digest else b""), header)
        if parcel.fault is Fault.CORRUPT:
            data[len(data) // 2] ^= 1
        group = target.pending[0]
        num_bytes = group.coding.num_bytes(group.span, group.wire_layout(target.cache.layout))
        announced = _header(group, self._num_received, num_bytes)
        try:
            digest_ok = is_intact(header, data, announced, needs_digest=target.digest)
        except HeaderError as error:
            self.fail(str(error))
            return
        self._num_received += 1
        if digest_ok and group.block_ids is not None:
            _scatter(target, group, group.block_ids, data)
        target.pending.popleft()
        target.events.on_received(group.seq, digest_ok)
        if is_first and not source.is_over:
            source.pending.remove(parcel.group)
            source.events.on_sent(parcel.group.seq, started_s, time.monotonic())


def _header(group: Group, number: int, num_bytes: int) -> ChunkHeader:
    return ChunkHeader(handoff_id(group.request_id), group.epoch, number, num_bytes, b"")


def _gathered(end: _End, group: Group) -> Bytes:
    """A group's bytes as they go on the link."""
    assert group.block_ids is not None
    span, coding, layout = group.span, group.coding, group.wire_layout(end.cache.layout)
    data = aligned_bytes(coding.num_bytes(span, layout))
    raw = data if coding.is_raw else end.coder.raw(span, layout)
    end.cache.gather(span.first_layer, span.end_layer, group.block_ids, raw, group.heads)
    if not coding.is_raw:
        end.coder.encode(coding, span, layout, raw, data)
    return data


def _scatter(end: _End, group: Group, block_ids: BlockIds, data: Bytes) -> None:
    span, coding, layout = group.span, group.coding, group.wire_layout(end.cache.layout)
    raw = data if coding.is_raw else end.coder.decode(coding, span, layout, data)
    end.cache.scatter(span.first_layer, span.end_layer, block_ids, raw, group.heads)
