"""Holds one worker's KV in host memory: one allocation, and byte copies in and out of it.

Knows nothing of which blocks are free, who owns them, or what a peer is.
"""

import numpy as np
import torch

from twinpool.core.errors import SpecError
from twinpool.model.host_pool import allocate_shared
from twinpool.model.kv_layout import HeadRange, KVLayout, SharedKV
from twinpool.model.kv_part import view_part

# From here on a copy for each block beats one call for all rows (measured beside a link: equal at 256 KiB).
_MIN_RUN_BYTES = 512 << 10
_MIN_PART_BYTES = 8 << 10  # the same where a block's bytes lie apart, which one call for all would copy twice


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

    def gather(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: np.ndarray,
        out: np.ndarray,
        heads: HeadRange | None = None,
    ) -> None:
        """Copy layers ``[first_layer, end_layer)`` of the named blocks into ``out``, block by block.

        Args:
            block_ids: int64 ``[M]``, each in ``[0, num_blocks)``; repeats allowed.
            out: uint8, contiguous, ``M * (end_layer - first_layer)`` times the ``block_layer_bytes`` of these heads
                long; overwritten.
            heads: of the pool's; None: all.

        Raises:
            ValueError: a range, size or dtype above does not hold. Nothing was copied.
        """
        part = self._check(first_layer, end_layer, block_ids, out, heads)
        if part[0].nbytes >= self._min_block_bytes(part):
            for block, data in zip(block_ids.tolist(), out.reshape(-1, *part.shape[1:]), strict=True):
                data[...] = part[block]
        elif part[0].flags.c_contiguous:
            # The ids were checked: "clip" only spares numpy a buffered copy of the output.
            rows = self._row_numbers(first_layer, end_layer, block_ids)
            np.take(self._rows, rows, axis=0, out=out.reshape(len(rows), -1), mode="clip")
        else:
            out.reshape(-1, *part.shape[1:])[...] = part[block_ids]

    def scatter(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: np.ndarray,
        data: np.ndarray,
        heads: HeadRange | None = None,
    ) -> None:
        """The inverse of ``gather``: write ``data`` into the named blocks, whose ids must differ from each other."""
        part = self._check(first_layer, end_layer, block_ids, data, heads)
        if part[0].nbytes >= self._min_block_bytes(part):
            for block, source in zip(block_ids.tolist(), data.reshape(-1, *part.shape[1:]), strict=True):
                part[block] = source
        elif part[0].flags.c_contiguous:
            rows = self._row_numbers(first_layer, end_layer, block_ids)
            self._rows[rows] = data.reshape(len(rows), -1)
        else:
            part[block_ids] = data.reshape(-1, *part.shape[1:])

    @staticmethod
    def _min_block_bytes(part: np.ndarray) -> int:
        """From how many bytes on each block has a copy of its own."""
        return _MIN_RUN_BYTES if part[0].flags.c_contiguous else _MIN_PART_BYTES

    def _row_numbers(self, first_layer: int, end_layer: int, block_ids: np.ndarray) -> np.ndarray:
        """The rows of ``_rows`` meant, in order."""
        return (block_ids[:, None] * self.layout.num_layers + np.arange(first_layer, end_layer)).ravel()

    def _check(
        self, first_layer: int, end_layer: int, block_ids: np.ndarray, data: np.ndarray, heads: HeadRange | None
    ) -> np.ndarray:
        """The part meant of every block, as ``view_part`` does; ValueError unless everything fits."""
        part = view_part(self._rows.reshape(self.num_blocks, -1), self.layout, first_layer, end_layer, heads)
        if len(block_ids) == 0 or block_ids.min() < 0 or block_ids.max() >= self.num_blocks:
            raise ValueError(f"block ids are none, or not all in [0, {self.num_blocks})")
        nbytes = len(block_ids) * part[0].nbytes
        if data.dtype != np.uint8 or data.shape != (nbytes,) or not data.flags.c_contiguous:
            raise ValueError(f"need {nbytes} contiguous bytes, not {data.dtype} of shape {data.shape}")
        return part
