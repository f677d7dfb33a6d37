"""Holds one worker's KV in host memory: one allocation, and byte copies in and out of it.

Knows nothing of which blocks are free, who owns them, or what a peer is.
"""

import numpy as np
import torch

from twinpool.core.errors import SpecError
from twinpool.model.host_pool import allocate_shared
from twinpool.model.kv_layout import KVLayout, SharedKV

# From here on a copy for each block beats one call for all rows (measured beside a link: equal at 256 KiB).
_MIN_RUN_BYTES = 512 << 10


def count_blocks(layout: KVLayout, kv_bytes: int) -> int:
    """Whole blocks that fit into ``kv_bytes``; raises SpecError when not even one does."""
    num_blocks = kv_bytes // layout.block_bytes
    if num_blocks < 1:
        raise SpecError(f"kv.memory: {kv_bytes} bytes hold no block; one block of this model is {layout.block_bytes}")
    return num_blocks


class TorchKVCache:
    """The pool ``[num_blocks, num_layers, 2, num_kv_heads, block_tokens, head_dim]`` of KVLayout, as one tensor.

    Its memory starts with whatever was there: a slot means something only after it was written. ``gather`` and
    ``scatter`` may be called from any thread, at once, for blocks that the pool keeps referenced; the copies release
    the interpreter lock. ``shared`` asks for zeroed memory that other processes can be shown, if this machine has such.
    Raises SpecError when the memory cannot be had.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, device: str = "cpu", *, shared: bool = False) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        size = num_blocks * layout.block_bytes
        self._pool = allocate_shared(size) if shared else None
        self.shared: SharedKV | None = None
        shape = (num_blocks, layout.num_layers, 2, layout.num_kv_heads, layout.block_tokens, layout.head_dim)
        dtype = getattr(torch, layout.dtype)
        if self._pool is not None:
            self.tensor = torch.from_numpy(self._pool.bytes).view(dtype).view(shape)
            self.shared = SharedKV(self._pool.bytes.reshape(num_blocks, layout.num_layers, -1), self._pool.fd)
        else:
            try:
                self.tensor = torch.empty(shape, dtype=dtype, device=device)
            except RuntimeError as error:
                raise SpecError(f"kv.memory: cannot allocate {size} bytes on {device}: {error}") from error
        # numpy copies rows of bytes 2 to 40 times faster than torch.index_copy_ does on a CPU.
        self._rows = self.tensor.view(torch.uint8).view(num_blocks * layout.num_layers, -1).numpy()

    def gather(self, first_layer: int, end_layer: int, block_ids: np.ndarray, out: np.ndarray) -> None:
        """Copy layers ``[first_layer, end_layer)`` of the named blocks into ``out``, block by block.

        Args:
            block_ids: int64 ``[M]``, each in ``[0, num_blocks)``; repeats allowed.
            out: uint8, contiguous, ``M * (end_layer - first_layer) * layout.block_layer_bytes`` long; overwritten.

        Raises:
            ValueError: a range, size or dtype above does not hold. Nothing was copied.
        """
        rows = self._check(first_layer, end_layer, block_ids, out)
        runs = self._runs(first_layer, end_layer)
        if runs.shape[1] >= _MIN_RUN_BYTES:
            for block, part in zip(block_ids.tolist(), out.reshape(len(block_ids), -1), strict=True):
                part[:] = runs[block]
            return
        # The ids were checked: "clip" only spares numpy a buffered copy of the output.
        np.take(self._rows, rows, axis=0, out=out.reshape(len(rows), -1), mode="clip")

    def scatter(self, first_layer: int, end_layer: int, block_ids: np.ndarray, data: np.ndarray) -> None:
        """The inverse of ``gather``: write ``data`` into the named blocks, whose ids must differ from each other."""
        rows = self._check(first_layer, end_layer, block_ids, data)
        runs = self._runs(first_layer, end_layer)
        if runs.shape[1] >= _MIN_RUN_BYTES:
            for block, part in zip(block_ids.tolist(), data.reshape(len(block_ids), -1), strict=True):
                runs[block] = part
            return
        self._rows[rows] = data.reshape(len(rows), -1)

    def _runs(self, first_layer: int, end_layer: int) -> np.ndarray:
        """The bytes of these layers, which are contiguous in each block: ``[num_blocks, ...]``, a view."""
        size = self.layout.block_layer_bytes
        return self._rows.reshape(self.num_blocks, -1)[:, first_layer * size : end_layer * size]

    def _check(self, first_layer: int, end_layer: int, block_ids: np.ndarray, data: np.ndarray) -> np.ndarray:
        """The rows of ``_rows`` meant, in order; ValueError unless everything fits."""
        if not 0 <= first_layer < end_layer <= self.layout.num_layers:
            raise ValueError(f"layers [{first_layer}, {end_layer}) are not in [0, {self.layout.num_layers})")
        if len(block_ids) == 0 or block_ids.min() < 0 or block_ids.max() >= self.num_blocks:
            raise ValueError(f"block ids are none, or not all in [0, {self.num_blocks})")
        nbytes = len(block_ids) * (end_layer - first_layer) * self.layout.block_layer_bytes
        if data.dtype != np.uint8 or data.shape != (nbytes,) or not data.flags.c_contiguous:
            raise ValueError(f"need {nbytes} contiguous bytes, not {data.dtype} of shape {data.shape}")
        return (block_ids[:, None] * self.layout.num_layers + np.arange(first_layer, end_layer)).ravel()
