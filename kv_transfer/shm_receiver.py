"""The target's end of a shared-memory link: maps the source's pool, and copies the blocks that it is offered.

Trusts the source with the contents of its KV only: sizes come from what was announced, and ids are checked against what
is mapped. Writes no block of the source's: the mapping is read-only.
"""

import os
import socket
from functools import partial

import numpy as np

from twinpool.kv_transfer.chunks import cut_group
from twinpool.kv_transfer.header import HEADER_BYTES, HeaderError, parse_header
from twinpool.kv_transfer.link import BlockIds, Group, LinkError, LinkEvents
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.shm_copy import Pool, check_ids, copy_blocks
from twinpool.kv_transfer.shm_socket import accept, receive, send, welcome
from twinpool.kv_transfer.shm_thread import ACK_BYTES, ShmEnd, Terms, message_bytes, select
from twinpool.model.host_pool import map_pool


class ShmReceiver(ShmEnd):
    """See ReceiveLink."""

    def __init__(self, listener: socket.socket, secret: bytes, terms: Terms, events: LinkEvents) -> None:
        self._secret = secret
        self._source: Pool | None = None  # the source's pool, mapped
        super().__init__(listener, terms, events)

    def receive(self, group: Group) -> None:
        """See ReceiveLink."""
        self._queue.put(group)

    def _open(self) -> None:
        connection, fd = accept(self._connection, self._secret, self._terms.open_timeout_s)
        try:
            self._use(connection)
            self._source = self._map(fd)
        finally:
            os.close(fd)
        welcome(connection)

    def _map(self, fd: int) -> Pool:
        layout = self._terms.cache.layout
        try:
            memory = map_pool(fd)
        except (ValueError, OSError) as error:
            raise LinkError(f"cannot map the source's pool: {error}") from None
        num_blocks, rest = divmod(len(memory), layout.block_bytes)
        if rest:
            raise LinkError(f"the source's pool of {len(memory)} bytes is not of blocks of {layout.block_bytes}")
        return memory.reshape(num_blocks, layout.num_layers, layout.block_layer_bytes)

    def _move(self, group: Group) -> None:
        group_ok = True
        for span in cut_group(group.span, self._terms.cache.layout, self._terms.chunk_bytes):
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
        source_ids: BlockIds = np.frombuffer(message, "<i8", offset=HEADER_BYTES).astype(np.int64)
        source, ours = self._source, self._terms.shared.blocks
        assert source is not None
        try:
            check_ids(source, source_ids)
        except ValueError as error:
            raise LinkError(f"the source offers what it has not: {error}") from None
        if group.block_ids is None:
            return True
        target_ids, layers = select(group, span, group.block_ids), (span.first_layer, span.end_layer)
        copy = partial(copy_blocks, source, source_ids, ours, target_ids, layers, digest=self._terms.digest)
        digest = self._touch(copy)
        return not self._terms.digest or header.digest == digest

    def _release(self) -> None:
        self._source = None  # unmaps it
