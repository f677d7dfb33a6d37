"""The KV of a worker of several ranks for `twinpool bench transfer`: one pool for each rank, all in one process.

Holds and copies bytes. Knows no link; transfer_rank_links.py moves them.
"""

from dataclasses import replace

import numpy as np

from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.rank_shape import RankShare, WorkerShape, shares_of
from twinpool.model.kv_cache import TorchKVCache
from twinpool.model.kv_layout import HeadRange, KVLayout, SharedKV
from twinpool.model.kv_part import view_part


class RankedPool:
    """Looks like the one cache that a worker of a single rank has (see KVCache), and consists of one for each rank.

    Memory starts as zeros. Raises SpecError when it cannot be had.
    """

    def __init__(self, layout: KVLayout, tensor_parallel: int, num_blocks: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.shared: SharedKV | None = None  # each rank's own is
        self.shape = WorkerShape(tensor_parallel)
        self.shares = shares_of(self.shape, layout)
        self.ranks = [TorchKVCache(share.layout(layout), num_blocks, shared=True) for share in self.shares]
        self.clear()

    def clear(self) -> None:
        """Forget all KV."""
        for rank in self.ranks:
            rank.tensor.zero_()

    def gather(
        self, first_layer: int, end_layer: int, block_ids: np.ndarray, out: np.ndarray, heads: HeadRange | None = None
    ) -> None:
        """See KVCache; all heads only."""
        for rank, share, part in self._parts(first_layer, end_layer, block_ids, out, heads):
            data = np.empty(part.size, dtype=np.uint8)
            rank.gather(first_layer - share.first_layer, end_layer - share.first_layer, block_ids, data)
            part[...] = data.reshape(part.shape)

    def write(self, block: int, data: Bytes) -> None:
        """Write all of one block, given as a single rank would have it."""
        self.scatter(0, self.layout.num_layers, np.array([block]), data)

    def scatter(
        self, first_layer: int, end_layer: int, block_ids: np.ndarray, data: np.ndarray, heads: HeadRange | None = None
    ) -> None:
        """See KVCache; all heads only."""
        for rank, share, part in self._parts(first_layer, end_layer, block_ids, data, heads):
            copy = np.ascontiguousarray(part).reshape(-1)
            rank.scatter(first_layer - share.first_layer, end_layer - share.first_layer, block_ids, copy)

    def _parts(
        self, first_layer: int, end_layer: int, block_ids: np.ndarray, data: np.ndarray, heads: HeadRange | None
    ) -> list[tuple[TorchKVCache, RankShare, np.ndarray]]:
        """Each rank, and the part of ``data`` that is its."""
        if heads is not None:
            raise ValueError("the ranks are read and written whole")
        layout, blocks = self.layout, data.reshape(len(block_ids), -1)
        some = replace(layout, num_layers=end_layer - first_layer)
        return [
            (
                rank,
                share,
                view_part(blocks, some, 0, some.num_layers, HeadRange(share.first_head, share.end_head)),
            )
            for rank, share in zip(self.ranks, self.shares, strict=True)
        ]
