"""Holds one worker's KV in numpy memory, for runners that compute nothing with torch.

Knows nothing of which blocks are free, who owns them, or what a peer is.
"""

import numpy as np

from twinpool.core.errors import SpecError
from twinpool.model.host_pool import allocate_shared
from twinpool.model.kv_layout import HeadRange, KVLayout, SharedKV
from twinpool.model.kv_part import view_part


class ArrayKVCache:
    """A KV pool in numpy memory; pages that are never written cost nothing.

    ``shared`` asks for memory that other processes can be shown, if this machine has such. Raises SpecError when the
    memory cannot be had.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, *, shared: bool = False) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.shared: SharedKV | None = None
        self._pool = allocate_shared(num_blocks * layout.block_bytes) if shared else None
        shape = (num_blocks, layout.num_layers, layout.block_layer_bytes)
        if self._pool is None:
            self.bytes = _zeros(shape)
        else:
            self.bytes = self._pool.bytes.reshape(shape)
            self.shared = SharedKV(self.bytes, self._pool.fd)

    def gather(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: np.ndarray,
        out: np.ndarray,
        heads: HeadRange | None = None,
    ) -> None:
        """See KVCache."""
        source = view_part(self.bytes, self.layout, first_layer, end_layer, heads)
        out.reshape(len(block_ids), *source.shape[1:])[...] = source[block_ids]

    def scatter(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: np.ndarray,
        data: np.ndarray,
        heads: HeadRange | None = None,
    ) -> None:
        """See KVCache."""
        target = view_part(self.bytes, self.layout, first_layer, end_layer, heads)
        target[block_ids] = data.reshape(len(block_ids), *target.shape[1:])


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.zeros(shape, np.uint8)
    except MemoryError as error:
        raise SpecError(f"kv.memory: {error}") from error
