"""What both ends of a link that pulls have in common: a thread that opens it, then takes group after group.

Knows neither direction (see pull_sender.py and pull_receiver.py), and no kind of memory (see pull_pool.py).
"""

import logging
import queue
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from twinpool.kv_transfer.chunks import cut_group
from twinpool.kv_transfer.header import HEADER_BYTES, ChunkHeader, HeaderError, handoff_id
from twinpool.kv_transfer.link import BlockIds, Group, LinkError, LinkEvents
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.pull_pool import Part, PullMemory
from twinpool.model.kv_layout import KVLayout

MAX_CHUNK_BLOCKS = 4096  # their ids must fit into one message
ACK_BYTES = 8  # the number of the chunk, little-endian
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What all links of one kind of a worker have in common (see PullLinks)."""

    layout: KVLayout
    memory: PullMemory
    digest: bool
    open_timeout_s: float
    chunk_timeout_s: float
    chunk_bytes: int


class Closing(Exception):
    """``close`` was called: the thread ends, and nobody is told of an error."""


class PullEnd(ABC):
    """One end (see Link). ``close`` and ``join`` are called from any thread; the rest runs on its own."""

    def __init__(self, first: socket.socket | None, terms: Terms, events: LinkEvents) -> None:
        self._socket = first  # what ``close`` shuts down; replaced by ``_use``
        self._terms = terms
        self._events = events
        self._queue: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._touching = threading.Lock()  # held while blocks are read or written
        self._is_closing = False
        self._num_chunks = 0
        self._thread = threading.Thread(target=self._run, name=f"link-{type(self).__name__}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See Link. The connection is shut down on return, so the other end can report nothing more as taken."""
        self._is_closing = True  # before the lock, which is not fair: the thread must not take it once more
        with self._touching, suppress(OSError):  # not connected, or gone
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """See Link."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._open()
            if not self._is_closing:
                self._events.on_open()
            while True:
                self._move(self._take_group())
        except Closing:
            pass
        except (LinkError, HeaderError) as error:
            self._fail(str(error))
        except Exception as error:  # the outermost loop of the thread: whoever waits for a group must hear of it
            log.exception("a link's thread failed")
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            with self._touching:
                if self._socket is not None:
                    self._socket.close()
            self._release()
            self._events.on_closed()

    def _fail(self, reason: str) -> None:
        if not self._is_closing:
            self._events.on_error(reason)

    @property
    def _connection(self) -> socket.socket:
        assert self._socket is not None
        return self._socket

    def _use(self, connection: socket.socket) -> None:
        """Go on with another socket; the former one is closed."""
        with self._touching:
            former, self._socket = self._socket, connection
            if former is not None:
                former.close()
            if self._is_closing:
                raise Closing

    def _touch(self, what: Callable[[], T]) -> T:
        """Read or write blocks, unless the link is closed: they may be someone else's by now."""
        with self._touching:
            if self._is_closing:
                raise Closing
            return what()

    def _take_group(self) -> Group:
        group = self._queue.get()
        if group is None or self._is_closing:
            raise Closing
        return group

    def _cut(self, group: Group) -> Iterator[Span]:
        """The chunks of a group, which are the same at both ends."""
        layout = group.wire_layout(self._terms.layout)
        limit_bytes = min(self._terms.chunk_bytes, MAX_CHUNK_BLOCKS * layout.block_layer_bytes)
        return cut_group(group.span, layout, limit_bytes)

    def _announced(self, group: Group, span: Span) -> ChunkHeader:
        """What both ends know of the next chunk; without a digest."""
        num_bytes = span.num_bytes(group.wire_layout(self._terms.layout))
        return ChunkHeader(handoff_id(group.request_id), group.epoch, self._num_chunks, num_bytes, b"")

    def _own_part(self, group: Group, span: Span) -> Part:
        """Where a chunk of a group lies in this worker's pool."""
        assert group.block_ids is not None
        ids = select(group, span, group.block_ids)
        return Part(self._terms.layout, ids, span.first_layer, span.end_layer, group.heads)

    @abstractmethod
    def _open(self) -> None:
        """Meet the other end."""

    @abstractmethod
    def _move(self, group: Group) -> None:
        """Do this end's part for a group."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of what the thread held."""


def select(group: Group, span: Span, block_ids: BlockIds) -> BlockIds:
    """The blocks of one of a group's chunks, of the group's."""
    first = group.span.first_block
    return block_ids[span.first_block - first : span.end_block - first]


def is_last(group: Group, span: Span) -> bool:
    """Whether the chunk is the last of its group."""
    return (span.end_block, span.end_layer) == (group.span.end_block, group.span.end_layer)


def message_bytes(span: Span) -> int:
    """Size of the message that offers a chunk: a header, and the ids of the source's blocks."""
    return HEADER_BYTES + 8 * span.num_blocks
