"""Runs are the bytes of a chunk in wire order, as long as the pool's order allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.reshard import HeadSpan
from twinpool.kv_transfer.runs import contiguous_runs, run_bytes
from twinpool.model.kv_layout import KVLayout

from .reshard_model import build_model

LLAMA_3_8B = KVLayout(32, 8, block_tokens=64, head_dim=128, dtype="bfloat16", model="m")
POOL_BLOCKS = 9


@st.composite
def parts(draw):
    """(layout, part of a request in its coordinates, ids of the part's blocks)."""
    layout = build_model(
        draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    )
    first_layer = draw(st.integers(0, layout.num_layers - 1))
    first_head = draw(st.integers(0, layout.num_kv_heads - 1))
    ids = draw(st.lists(st.integers(0, POOL_BLOCKS - 1), min_size=1, max_size=5, unique=True))
    span = Span(first_layer, draw(st.integers(first_layer + 1, layout.num_layers)), 3, 3 + len(ids))
    return layout, HeadSpan(span, first_head, draw(st.integers(first_head + 1, layout.num_kv_heads))), ids


def positions(layout: KVLayout, part: HeadSpan, ids: list[int]) -> np.ndarray:
    """Where each byte of the part lies in the pool, in wire order."""
    shape = (POOL_BLOCKS, layout.num_layers, 2, layout.num_kv_heads, layout.block_tokens * layout.head_dim * 2)
    pool = np.arange(np.prod(shape)).reshape(shape)
    span = part.span
    return pool[ids, span.first_layer : span.end_layer, :, part.first_head : part.end_head].ravel()


@given(parts())
def test_runs_are_the_bytes_of_a_part_in_wire_order_and_none_could_be_longer(case):
    layout, part, ids = case
    expected = positions(layout, part, ids)
    runs = contiguous_runs(part, layout, ids)
    np.testing.assert_array_equal(np.concatenate([np.arange(start, start + size) for start, size in runs]), expected)
    assert len(runs) == 1 + np.count_nonzero(np.diff(expected) != 1)


@given(parts())
def test_runs_of_blocks_that_lie_apart_have_the_size_that_is_promised(case):
    layout, part, ids = case
    apart = [2 * block for block in ids]
    sizes = contiguous_runs(part, layout, apart)[:, 1]
    assert set(sizes.tolist()) == {run_bytes(part, layout)}
    assert sizes.sum() == part.num_bytes(layout)


def test_runs_of_a_large_model():
    whole, sliced = HeadSpan(Span(0, 1, 0, 2), 0, 8), HeadSpan(Span(0, 32, 0, 2), 0, 4)
    assert run_bytes(whole, LLAMA_3_8B) == 256 << 10
    assert run_bytes(sliced, LLAMA_3_8B) == 64 << 10
    assert contiguous_runs(whole, LLAMA_3_8B, [5, 6]).tolist() == [[5 << 23, 256 << 10], [6 << 23, 256 << 10]]
    block = HeadSpan(Span(0, 32, 0, 3), 0, 8)
    assert contiguous_runs(block, LLAMA_3_8B, [5, 6, 9]).tolist() == [[5 << 23, 16 << 20], [9 << 23, 8 << 20]]


def test_as_many_ids_as_blocks_are_needed():
    with pytest.raises(ValueError, match="1 block ids for 2 blocks"):
        contiguous_runs(HeadSpan(Span(0, 1, 0, 2), 0, 8), LLAMA_3_8B, [1])
