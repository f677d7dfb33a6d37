"""A group's chunks are small and make it up exactly."""

from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.chunks import cut_group, max_chunk_bytes
from twinpool.kv_transfer.plan import Span

from .fakes import LAYOUT


def pairs(span: Span) -> list[tuple[int, int]]:
    return [
        (block, layer)
        for block in range(span.first_block, span.end_block)
        for layer in range(span.first_layer, span.end_layer)
    ]


@given(st.integers(0, 2), st.integers(1, 3), st.integers(0, 5), st.integers(1, 9), st.integers(1, 8000))
def test_chunks_tile_the_group_within_the_limit(first: int, layers: int, block: int, blocks: int, limit: int) -> None:
    span = Span(first, first + layers, block, block + blocks)
    chunks = list(cut_group(span, LAYOUT, limit))
    moved = [pair for chunk in chunks for pair in pairs(chunk)]
    assert sorted(moved) == sorted(pairs(span))
    assert len(set(moved)) == len(moved)
    assert all(chunk.num_bytes(LAYOUT) <= max_chunk_bytes(LAYOUT, limit) for chunk in chunks)
    assert (chunks[-1].end_block, chunks[-1].end_layer) == (span.end_block, span.end_layer)
    ends = [(c.end_block, c.end_layer) for c in chunks[:-1]]
    assert (span.end_block, span.end_layer) not in ends


def test_a_group_within_the_limit_is_one_chunk() -> None:
    span = Span(0, 3, 2, 7)
    assert list(cut_group(span, LAYOUT, span.num_bytes(LAYOUT))) == [span]
