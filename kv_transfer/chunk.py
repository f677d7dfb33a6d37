"""A chunk on its way over a wire: what both ends expect of it, and where its bytes are at this end.

Knows no wire and copies nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from twinpool.kv_transfer.chunk_wire import Cut
from twinpool.kv_transfer.header import HEADER_BYTES, Bytes, ChunkHeader, handoff_id
from twinpool.kv_transfer.link import BlockIds, Group
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVCache, KVLayout


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Which part of which group, and the staging memory that it has until it is over, if it needs any."""

    group: Group
    span: Span
    layout: KVLayout  # of its bytes before they are coded
    number: int  # on the link
    is_last: bool  # of its group
    started_s: float  # its group, by time.monotonic
    num_bytes: int  # as on the link
    header: Bytes
    data: Bytes | None  # as on the link; None: its messages lie in the blocks

    @property
    def announced(self) -> ChunkHeader:
        """What the control channel lets both ends expect of it; without a digest."""
        group = self.group
        return ChunkHeader(handoff_id(group.request_id), group.epoch, self.number, self.num_bytes, b"")

    @property
    def block_ids(self) -> BlockIds:
        """Its own blocks, of its group's."""
        assert self.group.block_ids is not None
        first = self.group.span.first_block
        return self.group.block_ids[self.span.first_block - first : self.span.end_block - first]

    def messages(self, cut: Cut | None) -> Iterator[tuple[slice, Bytes]]:
        """The staging memory of each message, and which of ``block_ids`` it is of. Only of raw KV that is staged."""
        assert self.data is not None
        span = self.span
        step = span.num_blocks if cut is None else cut.blocks_per_message(span, self.layout)
        block_bytes = span.num_layers * self.layout.block_layer_bytes
        for first in range(0, span.num_blocks, step):
            end = min(first + step, span.num_blocks)
            yield slice(first, end), self.data[first * block_bytes : end * block_bytes]

    def in_blocks(self, cache: KVCache) -> list[Bytes]:
        """Its part of each of its blocks, where they lie.

        Raises:
            ValueError: a block is none of the pool's.
        """
        assert cache.shared is not None
        ids = self.block_ids
        if ids.min() < 0 or ids.max() >= cache.num_blocks:
            raise ValueError(f"block ids from {ids.min()} to {ids.max()}: the pool has {cache.num_blocks} blocks")
        layers = cache.shared.blocks[:, self.span.first_layer : self.span.end_layer]
        return [layers[block].reshape(-1) for block in ids.tolist()]


def lies_in_blocks(group: Group, span: Span, cache: KVCache, cut: Cut | None) -> bool:
    """Whether the chunk's messages can be sent from, or received into, the blocks themselves."""
    if cut is None or cache.shared is None or group.block_ids is None or not group.coding.is_raw:
        return False
    is_whole = cache.layout.of_heads(group.heads) is cache.layout
    return is_whole and cut.is_direct(span, cache.layout)


def new_header() -> Bytes:
    """Memory for a chunk's header."""
    return np.zeros(HEADER_BYTES, dtype=np.uint8)
