"""Views the bytes of some layers and KV heads in every block of a pool.

Knows where they lie: not whose they are, and not what copies them.
"""

import numpy as np
from numpy.typing import NDArray

from twinpool.model.kv_layout import HeadRange, KVLayout

Bytes = NDArray[np.uint8]


def view_part(blocks: Bytes, layout: KVLayout, first_layer: int, end_layer: int, heads: HeadRange | None) -> Bytes:
    """View layers ``[first_layer, end_layer)`` of these heads as ``[num_blocks, num_layers, 2, bytes of the heads]``.

    With all heads, each block of the view is contiguous; with some, each of its rows is.

    Args:
        blocks: a pool of this layout, contiguous; any shape whose first axis is blocks.
        heads: of the pool's; None: all.

    Raises:
        ValueError: the layout has no such layers or heads.
    """
    if not 0 <= first_layer < end_layer <= layout.num_layers:
        raise ValueError(f"layers [{first_layer}, {end_layer}) are not in [0, {layout.num_layers})")
    part = blocks.reshape(len(blocks), layout.num_layers, 2, -1)[:, first_layer:end_layer]
    if heads is None or layout.of_heads(heads) is layout:
        return part
    head_bytes = part.shape[-1] // layout.num_kv_heads
    return part[..., heads.first * head_bytes : heads.end * head_bytes]
