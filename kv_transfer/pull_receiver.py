"""The target's end of a link that pulls: opens the source's pool, and copies the blocks that it is offered.

Trusts the source with the contents of its KV only: sizes come from what was announced, and ids are checked against what
was opened. Writes no block of the source's.
"""

import os
import socket
from functools import partial

import numpy as np

from twinpool.kv_transfer.header import HEADER_BYTES, HeaderError, parse_header
from twinpool.kv_transfer.link import BlockIds, Group, LinkError, LinkEvents
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.pull_pool import Part, RemotePool
from twinpool.kv_transfer.pull_socket import accept, receive, send, welcome
from twinpool.kv_transfer.pull_thread import ACK_BYTES, PullEnd, Terms, message_bytes


class PullReceiver(PullEnd):
    """See ReceiveLink."""

    def __init__(self, listener: socket.socket, secret: bytes, terms: Terms, events: LinkEvents) -> None:
        self._secret = secret
        self._source: RemotePool | None = None
        super().__init__(listener, terms, events)

    def receive(self, group: Group) -> None:
        """See ReceiveLink."""
        self._queue.put(group)

    def _open(self) -> None:
        memory = self._terms.memory
        connection, key = accept(self._connection, self._secret, memory, self._terms.open_timeout_s)
        try:
            self._use(connection)
            self._source = memory.reach(key)
        finally:
            for fd in key.fds:
                os.close(fd)
        welcome(connection)

    def _move(self, group: Group) -> None:
        group_ok = True
        for span in self._cut(group):
            group_ok &= self._take(group, span)
            send(self._connection, self._num_chunks.to_bytes(ACK_BYTES, "little"))
            self._num_chunks += 1
        if not self._is_closing:
            self._events.on_received(group.seq, group_ok)

    def _take(self, group: Group, span: Span) -> bool:
        """Copy the chunk that is due; whether its digest holds."""
        message = receive(self._connection, message_bytes(span), self._terms.chunk_timeout_s)
        header = parse_header(message[:HEADER_BYTES])
        difference = header.differs_from(self._announced(group, span))
        if difference:
            raise HeaderError(difference)
        theirs = self._offered(message, group, span)
        if group.block_ids is None:
            return True
        assert self._source is not None
        ours = self._own_part(group, span)
        expected = header.digest if self._terms.digest else None
        return self._touch(partial(self._source.copy, theirs, ours, expected))

    def _offered(self, message: bytes, group: Group, span: Span) -> Part:
        """Where the chunk lies in the source's pool; only blocks that it has."""
        assert self._source is not None
        ids: BlockIds = np.frombuffer(message, "<i8", offset=HEADER_BYTES).astype(np.int64)
        place = group.source
        layout = self._terms.layout if place is None else place.layout
        num_blocks, rest = divmod(self._source.num_bytes, layout.block_bytes)
        if rest:
            raise LinkError(f"the source's pool of {self._source.num_bytes} bytes is not of blocks as announced")
        if len(ids) and not (ids.min() >= 0 and ids.max() < num_blocks):
            what = f"block ids from {ids.min()} to {ids.max()}: the pool has {num_blocks} blocks"
            raise LinkError(f"the source offers what it has not: {what}")
        if place is None:
            return Part(layout, ids, span.first_layer, span.end_layer, group.heads)
        return Part(layout, ids, *place.layers_of(span, group.span), place.heads)

    def _release(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()
