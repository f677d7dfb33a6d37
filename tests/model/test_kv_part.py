"""A part of a pool is a view of the very layers and heads that are named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.model.kv_layout import HeadRange, KVLayout
from twinpool.model.kv_part import view_part

LAYOUT = KVLayout(num_layers=3, num_kv_heads=4, block_tokens=2, head_dim=2, dtype="bfloat16", model="m")
POOL = np.random.default_rng(0).integers(0, 256, (5, LAYOUT.block_bytes), dtype=np.uint8)


@given(st.data())
def test_a_part_has_the_bytes_of_its_layers_and_heads_in_the_order_of_the_wire(data: st.DataObject) -> None:
    first_layer, first_head = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3))
    end_layer, end_head = data.draw(st.integers(first_layer + 1, 3)), data.draw(st.integers(first_head + 1, 4))
    part = view_part(POOL, LAYOUT, first_layer, end_layer, HeadRange(first_head, end_head))
    for block in range(5):
        wanted = [
            POOL[block, 64 * layer + 32 * half + 8 * head + byte]
            for layer in range(first_layer, end_layer)
            for half in (0, 1)
            for head in range(first_head, end_head)
            for byte in range(8)
        ]
        assert part[block].ravel().tolist() == wanted
    assert np.shares_memory(part, POOL)


def test_all_heads_are_one_piece_of_each_block_named_or_not() -> None:
    for heads in (None, HeadRange(0, 4)):
        assert view_part(POOL, LAYOUT, 1, 3, heads)[0].flags.c_contiguous
    assert not view_part(POOL, LAYOUT, 1, 3, HeadRange(0, 2))[0].flags.c_contiguous


@pytest.mark.parametrize("heads", [HeadRange(0, 5), HeadRange(-1, 2), HeadRange(2, 2), HeadRange(3, 1)])
def test_heads_that_the_pool_has_not_are_refused(heads: HeadRange) -> None:
    with pytest.raises(ValueError, match=r"KV heads \[.*\) are not in \[0, 4\)"):
        view_part(POOL, LAYOUT, 0, 3, heads)


def test_layers_that_the_pool_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers \[1, 4\) are not in \[0, 3\)"):
        view_part(POOL, LAYOUT, 1, 4, None)


def test_the_layout_of_some_heads_is_that_of_a_pool_which_has_no_others() -> None:
    assert LAYOUT.of_heads(None) is LAYOUT.of_heads(HeadRange(0, 4)) is LAYOUT
    assert LAYOUT.of_heads(HeadRange(1, 3)) == KVLayout(3, 2, 2, 2, "bfloat16", "m")
