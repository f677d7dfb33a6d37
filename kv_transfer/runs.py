"""Which bytes of a chunk lie side by side in a rank's pool: a link packs the others into one message.

Pure. Knows sizes and offsets: no tensor, no link.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twinpool.kv_transfer.reshard import HeadSpan
from twinpool.model.kv_layout import KVLayout


def run_bytes(part: HeadSpan, layout: KVLayout) -> int:
    """Bytes of ``part`` that are contiguous wherever its blocks lie: it consists of runs of this size, in wire order.

    With all heads of the rank, a run is a block's layers; with some, the keys or the values of one (block, layer).

    Args:
        part: in the rank's own layers and heads.
        layout: of the rank's own pool.
    """
    block_layer_bytes = replace(layout, num_kv_heads=part.num_heads).block_layer_bytes
    if part.num_heads < layout.num_kv_heads:
        return block_layer_bytes // 2
    return part.span.num_layers * block_layer_bytes


def contiguous_runs(part: HeadSpan, layout: KVLayout, block_ids: Sequence[int]) -> NDArray[np.int64]:
    """The longest runs of ``part`` in a rank's pool, in wire order, as rows (offset in the pool, size), both in bytes.

    Runs that meet in memory and follow each other on the wire are one: neighbouring blocks of all layers and heads.

    Raises:
        ValueError: ``block_ids`` are not as many as the part's blocks.
    """
    span = part.span
    if len(block_ids) != span.num_blocks:
        raise ValueError(f"{len(block_ids)} block ids for {span.num_blocks} blocks")
    size = run_bytes(part, layout)
    head_bytes = layout.block_layer_bytes // (2 * layout.num_kv_heads)
    blocks = np.asarray(block_ids, dtype=np.int64) * layout.block_bytes
    is_whole = part.num_heads == layout.num_kv_heads
    layers = np.arange(span.first_layer, span.first_layer + 1 if is_whole else span.end_layer, dtype=np.int64)
    halves = np.arange(1 if is_whole else 2, dtype=np.int64) * (layout.block_layer_bytes // 2)
    starts = blocks[:, None, None] + layers[:, None] * layout.block_layer_bytes + halves
    offsets = starts.ravel() + part.first_head * head_bytes
    is_first = np.append(True, np.diff(offsets) != size)
    counts = np.diff(np.append(np.flatnonzero(is_first), len(offsets)))
    return np.stack([offsets[is_first], counts * size], axis=1)
