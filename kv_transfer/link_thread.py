"""Moves groups over a wire on a thread of its own: cut, copy, code, digest and check, two chunks in flight.

The thread opens the wire too, since both opening and waiting may block for their whole deadline. Knows no transport:
a Wire posts byte arrays and waits for them.
"""

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from twinpool.kv_transfer.chunks import cut_group, max_chunk_bytes
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
from twinpool.kv_transfer.link import CHUNK_BYTES, BlockIds, Group, LinkError, LinkEvents
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import HeadRange, KVCache, KVLayout

NUM_SLOTS = 2  # one chunk on the wire while another is copied, coded and digested

Copy = Callable[[int, int, BlockIds, Bytes, HeadRange | None], None]  # KVCache's gather or scatter
Wait = Callable[[], None]  # until what was posted is over; LinkError when it fails or its deadline passes

log = logging.getLogger(__name__)


class Wire(Protocol):
    """One end of an open connection that exchanges chunks: posting returns at once, waiting has a deadline."""

    def send(self, chunk: int, header: Bytes, data: Bytes) -> Wait:
        """Post chunk number ``chunk``; its wait ends when the peer has taken it. Raises LinkError."""
        ...

    def receive(self, chunk: int, header: Bytes, data: Bytes) -> Wait:
        """Post the buffers for chunk number ``chunk``; its wait ends when they are full. Raises LinkError."""
        ...

    def close(self) -> None:
        """Drop the connection and every descriptor."""
        ...


class _Closing(Exception):
    """``close`` was called: the thread ends, and nobody is told of an error."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A chunk on its way: which part of which group, and the staging memory it has until it is over."""

    group: Group
    span: Span
    layout: KVLayout  # of its bytes before they are coded
    number: int  # on the link
    is_last: bool  # of its group
    started_s: float  # its group, by time.monotonic
    header: Bytes
    data: Bytes  # as on the link

    @property
    def announced(self) -> ChunkHeader:
        """What the control channel lets both ends expect of it; without a digest."""
        group = self.group
        return ChunkHeader(handoff_id(group.request_id), group.epoch, self.number, len(self.data), b"")

    def select(self, block_ids: BlockIds) -> BlockIds:
        """Its own blocks, of its group's."""
        first = self.group.span.first_block
        return block_ids[self.span.first_block - first : self.span.end_block - first]


class LinkThread(ABC):
    """What both ends have in common. ``close`` and ``join`` are called from any thread; the rest runs on its own."""

    def __init__(
        self,
        open_wire: Callable[[], Wire],
        cache: KVCache,
        events: LinkEvents,
        *,
        digest: bool = True,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._open_wire = open_wire
        self._cache = cache
        self._events = events
        self._digest = digest
        self._chunk_bytes = chunk_bytes
        self._queue: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._copying = threading.Lock()  # held while blocks are read or written
        self._is_closing = False
        self._in_flight: deque[tuple[Chunk, Wait]] = deque()
        self._num_chunks = 0
        self._slots: list[tuple[Bytes, Bytes]] = []
        self._coder = Coder()
        self._thread = threading.Thread(target=self._run, name=f"link-{type(self).__name__}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See Link."""
        self._is_closing = True  # before the lock, which is not fair: the thread must not copy once more
        with self._copying:
            pass
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """See Link."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._serve()
        except _Closing:
            pass
        except (LinkError, HeaderError) as error:
            self._fail(str(error))
        except Exception as error:  # the outermost loop of the thread: whoever waits for a group must hear of it
            log.exception("a link's thread failed")
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._slots.clear()
            self._events.on_closed()

    def _fail(self, reason: str) -> None:
        if not self._is_closing:
            self._events.on_error(reason)

    def _serve(self) -> None:
        wire = self._open_wire()
        try:
            if self._is_closing:
                return
            self._events.on_open()
            while True:
                self._move(wire, self._take_group())
        finally:
            self._in_flight.clear()
            wire.close()

    def _take_group(self) -> Group:
        """The next group; while none is queued, finish what is in flight."""
        while self._in_flight and self._queue.empty():
            self._finish_oldest()
        group = self._queue.get()
        if group is None or self._is_closing:
            raise _Closing
        return group

    def _move(self, wire: Wire, group: Group) -> None:
        whole, layout, started_s = group.span, group.wire_layout(self._cache.layout), time.monotonic()
        for span in cut_group(whole, layout, self._chunk_bytes):
            if len(self._in_flight) == NUM_SLOTS:
                self._finish_oldest()
            header, staging = self._slot(self._num_chunks % NUM_SLOTS)
            data = staging[: group.coding.num_bytes(span, layout)]
            is_last = (span.end_block, span.end_layer) == (whole.end_block, whole.end_layer)
            chunk = Chunk(group, span, layout, self._num_chunks, is_last, started_s, header, data)
            self._num_chunks += 1
            self._in_flight.append((chunk, self._post(wire, chunk)))

    def _slot(self, index: int) -> tuple[Bytes, Bytes]:
        if index == len(self._slots):
            size = max_chunk_bytes(self._cache.layout, self._chunk_bytes)
            self._slots.append((np.zeros(HEADER_BYTES, dtype=np.uint8), aligned_bytes(size)))
        return self._slots[index]

    def _finish_oldest(self) -> None:
        chunk, wait = self._in_flight[0]
        wait()
        self._in_flight.popleft()
        self._finish(chunk)

    def _copy(self, copy: Copy, chunk: Chunk, raw: Bytes) -> None:
        """Copy between blocks and memory, unless the link is closed: the blocks may be someone else's by now."""
        assert chunk.group.block_ids is not None
        with self._copying:
            if self._is_closing:
                raise _Closing
            span, ids = chunk.span, chunk.select(chunk.group.block_ids)
            copy(span.first_layer, span.end_layer, ids, raw, chunk.group.heads)

    @abstractmethod
    def _post(self, wire: Wire, chunk: Chunk) -> Wait:
        """Fill or offer the chunk's staging memory."""

    @abstractmethod
    def _finish(self, chunk: Chunk) -> None:
        """The chunk has left or arrived."""


class SendThread(LinkThread):
    """The source's end of a link (see SendLink)."""

    def send(self, group: Group) -> None:
        """See SendLink. A group of no blocks is a mistake of the caller's."""
        assert group.block_ids is not None
        self._queue.put(group)

    def _post(self, wire: Wire, chunk: Chunk) -> Wait:
        coding = chunk.group.coding
        raw = chunk.data if coding.is_raw else self._coder.raw(chunk.span, chunk.layout)
        self._copy(self._cache.gather, chunk, raw)
        if not coding.is_raw:
            self._coder.encode(coding, chunk.span, chunk.layout, raw, chunk.data)
        digest = data_digest(chunk.data) if self._digest else b""
        pack_header(replace(chunk.announced, digest=digest), chunk.header)
        return wire.send(chunk.number, chunk.header, chunk.data)

    def _finish(self, chunk: Chunk) -> None:
        if chunk.is_last and not self._is_closing:
            self._events.on_sent(chunk.group.seq, chunk.started_s, time.monotonic())


class ReceiveThread(LinkThread):
    """The target's end of a link (see ReceiveLink)."""

    _group_ok = True  # of the group whose chunks are arriving

    def receive(self, group: Group) -> None:
        """See ReceiveLink."""
        self._queue.put(group)

    def _post(self, wire: Wire, chunk: Chunk) -> Wait:
        return wire.receive(chunk.number, chunk.header, chunk.data)

    def _finish(self, chunk: Chunk) -> None:
        if is_intact(chunk.header, chunk.data, chunk.announced, needs_digest=self._digest):
            self._write(chunk)
        else:
            self._group_ok = False
        if chunk.is_last:
            group_ok, self._group_ok = self._group_ok, True
            if not self._is_closing:
                self._events.on_received(chunk.group.seq, group_ok)

    def _write(self, chunk: Chunk) -> None:
        """Put what arrived, and is what was sent, into its blocks."""
        coding = chunk.group.coding
        if chunk.group.block_ids is not None:
            raw = chunk.data
            if not coding.is_raw:
                raw = self._coder.decode(coding, chunk.span, chunk.layout, chunk.data)
            self._copy(self._cache.scatter, chunk, raw)
