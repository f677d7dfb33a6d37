"""Moves groups over a wire on a thread of its own: cut, copy, code, digest and check, two chunks in flight.

The thread opens the wire too, since both opening and waiting may block for their whole deadline. Long runs of bytes are
sent from blocks, and received into them, where the wire can; others are staged. Knows no transport: a Wire posts byte
arrays and waits for them.
"""

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import xxhash

from twinpool.kv_transfer.chunk import Chunk, lies_in_blocks, new_header
from twinpool.kv_transfer.chunk_wire import Wait, Wire
from twinpool.kv_transfer.chunks import cut_group, max_chunk_bytes
from twinpool.kv_transfer.coder import Coder, aligned_bytes
from twinpool.kv_transfer.header import Bytes, HeaderError, pack_header, sent_digest
from twinpool.kv_transfer.link import CHUNK_BYTES, BlockIds, Group, LinkError, LinkEvents
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import HeadRange, KVCache

NUM_SLOTS = 2  # one chunk on the wire while another is copied, coded and digested

Copy = Callable[[int, int, BlockIds, Bytes, HeadRange | None], None]  # KVCache's gather or scatter

log = logging.getLogger(__name__)


class _Closing(Exception):
    """``close`` was called: the thread ends, and nobody is told of an error."""


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
        self._copying = threading.Lock()  # held while blocks are read or written by this thread
        self._is_closing = False
        self._wire: Wire | None = None  # once it is open
        self._num_direct = 0  # chunks that the wire may read from, or write to, their blocks
        self._in_flight: deque[tuple[Chunk, Wait]] = deque()
        self._num_chunks = 0
        self._slots: list[Bytes] = []
        self._coder = Coder()
        self._thread = threading.Thread(target=self._run, name=f"link-{type(self).__name__}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See Link."""
        self._is_closing = True  # before the lock, which is not fair: the thread must not copy once more
        with self._copying:
            pass
        if self._wire is not None and self._num_direct:
            self._wire.cancel()
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
        wire = self._wire = self._open_wire()
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
        layout, started_s = group.wire_layout(self._cache.layout), time.monotonic()
        for span in cut_group(group.span, layout, self._chunk_bytes):
            if len(self._in_flight) == NUM_SLOTS:
                self._finish_oldest()
            chunk = self._make_chunk(wire, group, span, started_s)
            self._num_chunks += 1
            if chunk.data is None:
                self._num_direct += 1  # before the check: ``close`` looks at them in the other order
                if self._is_closing:
                    raise _Closing
            self._in_flight.append((chunk, self._post(wire, chunk)))

    def _make_chunk(self, wire: Wire, group: Group, span: Span, started_s: float) -> Chunk:
        whole, layout = group.span, group.wire_layout(self._cache.layout)
        is_last = (span.end_block, span.end_layer) == (whole.end_block, whole.end_layer)
        num_bytes, data = group.coding.num_bytes(span, layout), None
        if not lies_in_blocks(group, span, self._cache, wire.cut):
            data = self._staging(self._num_chunks % NUM_SLOTS)[:num_bytes]
        return Chunk(group, span, layout, self._num_chunks, is_last, started_s, num_bytes, new_header(), data)

    def _staging(self, index: int) -> Bytes:
        while index >= len(self._slots):
            self._slots.append(aligned_bytes(max_chunk_bytes(self._cache.layout, self._chunk_bytes)))
        return self._slots[index]

    def _finish_oldest(self) -> None:
        chunk, wait = self._in_flight[0]
        wait()
        self._in_flight.popleft()
        self._num_direct -= chunk.data is None
        self._finish(chunk)

    def _touch(self, what: Callable[[], object]) -> None:
        """Read or write blocks, unless the link is closed: they may be someone else's by now."""
        with self._copying:
            if self._is_closing:
                raise _Closing
            what()

    def _copy(self, copy: Copy, chunk: Chunk, block_ids: BlockIds, raw: Bytes) -> None:
        span = chunk.span
        self._touch(partial(copy, span.first_layer, span.end_layer, block_ids, raw, chunk.group.heads))

    def _add(self, hasher: xxhash.xxh3_128, chunk: Chunk, part: Bytes) -> None:
        """Digest one of a chunk's messages, in their order."""
        if not self._digest:
            return
        if chunk.data is None:
            self._touch(partial(hasher.update, part.data))
        else:
            hasher.update(part.data)

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
        return wire.send(chunk.number, chunk.header, self._fill(wire, chunk))

    def _fill(self, wire: Wire, chunk: Chunk) -> Iterator[Bytes]:
        """Yield its messages, each of which is digested while the wire has it already; then the header is ready."""
        hasher = xxhash.xxh3_128()
        for part in self._parts(wire, chunk):
            yield part
            self._add(hasher, chunk, part)
        digest = hasher.digest() if self._digest else b""
        pack_header(replace(chunk.announced, digest=digest), chunk.header)

    def _parts(self, wire: Wire, chunk: Chunk) -> Iterator[Bytes]:
        coding = chunk.group.coding
        if chunk.data is None:
            yield from chunk.in_blocks(self._cache)
        elif coding.is_raw:
            for some, part in chunk.messages(wire.cut):
                self._copy(self._cache.gather, chunk, chunk.block_ids[some], part)
                yield part
        else:
            raw = self._coder.raw(chunk.span, chunk.layout)
            self._copy(self._cache.gather, chunk, chunk.block_ids, raw)
            self._coder.encode(coding, chunk.span, chunk.layout, raw, chunk.data)
            yield chunk.data

    def _finish(self, chunk: Chunk) -> None:
        if chunk.is_last and not self._is_closing:
            self._events.on_sent(chunk.group.seq, chunk.started_s, time.monotonic())


class ReceiveThread(LinkThread):
    """The target's end of a link (see ReceiveLink)."""

    _group_ok = True  # of the group whose chunks are arriving

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hashers: dict[int, xxhash.xxh3_128] = {}  # by chunk that is in flight
        super().__init__(*args, **kwargs)

    def receive(self, group: Group) -> None:
        """See ReceiveLink."""
        self._queue.put(group)

    def _post(self, wire: Wire, chunk: Chunk) -> Wait:
        if chunk.data is None:
            parts = chunk.in_blocks(self._cache)
        elif chunk.group.coding.is_raw:
            parts = [part for _, part in chunk.messages(wire.cut)]
        else:
            parts = [chunk.data]
        hasher = self._hashers[chunk.number] = xxhash.xxh3_128()
        return wire.receive(chunk.number, chunk.header, parts, partial(self._add, hasher, chunk))

    def _finish(self, chunk: Chunk) -> None:
        digest = sent_digest(chunk.header, chunk.announced)
        hasher = self._hashers.pop(chunk.number)
        if not self._digest or digest == hasher.digest():
            self._write(chunk)
        else:
            self._group_ok = False
        if chunk.is_last:
            group_ok, self._group_ok = self._group_ok, True
            if not self._is_closing:
                self._events.on_received(chunk.group.seq, group_ok)

    def _write(self, chunk: Chunk) -> None:
        """Put what arrived, and is what was sent, into its blocks, unless it lies there."""
        coding = chunk.group.coding
        if chunk.group.block_ids is not None and chunk.data is not None:
            raw = chunk.data
            if not coding.is_raw:
                raw = self._coder.decode(coding, chunk.span, chunk.layout, chunk.data)
            self._copy(self._cache.scatter, chunk, chunk.block_ids, raw)
