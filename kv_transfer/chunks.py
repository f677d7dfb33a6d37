"""Cuts an announced group into the chunks that move on a link one by one, each with a header, a digest and a deadline.

Both ends cut alike, from the same span and layout. Knows no link and no memory.
"""

from collections.abc import Iterator

from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout


def max_chunk_bytes(layout: KVLayout, limit_bytes: int) -> int:
    """Raw size of the largest chunk that ``cut_group`` makes: the limit, but never less than one block of one layer."""
    return max(limit_bytes, layout.block_layer_bytes)


def cut_group(span: Span, layout: KVLayout, limit_bytes: int) -> Iterator[Span]:
    """Yield spans of at most ``max_chunk_bytes`` that make up ``span``: whole blocks if they fit, else fewer layers.

    The limit is on what is copied and coded at once; on the link a chunk is as large or smaller.
    """
    layers = min(span.num_layers, max(1, limit_bytes // layout.block_layer_bytes))
    blocks = max(1, limit_bytes // (layers * layout.block_layer_bytes))
    for first_block in range(span.first_block, span.end_block, blocks):
        end_block = min(first_block + blocks, span.end_block)
        for first_layer in range(span.first_layer, span.end_layer, layers):
            yield Span(first_layer, min(first_layer + layers, span.end_layer), first_block, end_block)
