import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.plan import (
    Coverage,
    Span,
    blocks_completed,
    clip,
    join,
    layer_groups,
    max_skip_blocks,
    spans_of_chunk,
)
from twinpool.model.kv_layout import KVLayout


@st.composite
def prefills(draw):
    """(num_tokens, block_tokens, tokens at the end of each chunk, num_layers, layers per group)."""
    num_tokens = draw(st.integers(1, 90))
    cuts = draw(st.sets(st.integers(1, num_tokens), max_size=6))
    layers = draw(st.integers(1, 7))
    return num_tokens, draw(st.integers(1, 20)), sorted(cuts | {num_tokens}), layers, draw(st.integers(1, 8))


def _spans(num_tokens, block_tokens, ends, num_layers, per_group):
    spans, before = [], 0
    for end in ends:
        groups = layer_groups(num_layers, per_group)
        spans += spans_of_chunk(before, end, end == num_tokens, block_tokens, groups)
        before = end
    return spans


@given(prefills())
def test_the_spans_of_all_chunks_tile_the_request_exactly_once(prefill):
    num_tokens, block_tokens, _, num_layers, _ = prefill
    coverage = Coverage.of(num_layers, 0, -(-num_tokens // block_tokens))
    for span in _spans(*prefill):
        coverage = coverage.with_span(span)
    assert coverage.is_complete


@given(prefills(), st.integers(0, 100))
def test_clipped_spans_tile_what_the_target_lacks_and_at_least_one_block_moves(prefill, skip):
    num_tokens, block_tokens, _, num_layers, _ = prefill
    skip = min(skip, max_skip_blocks(num_tokens, block_tokens))
    num_blocks = -(-num_tokens // block_tokens)
    clipped = [part for span in _spans(*prefill) if (part := clip(span, skip)) is not None]
    assert sum(part.num_layers * part.num_blocks for part in clipped) == num_layers * (num_blocks - skip) > 0
    coverage = Coverage.of(num_layers, skip, num_blocks)
    for part in clipped:
        coverage = coverage.with_span(part)
    assert coverage.is_complete


@given(st.lists(st.builds(Span, *[st.integers(-1, 5)] * 4), max_size=12), st.integers(0, 2))
def test_coverage_agrees_with_a_set_of_pairs(spans, skip):
    coverage, covered = Coverage.of(3, skip, 4), set()
    for span in spans:
        pairs = {
            (layer, block)
            for layer in range(span.first_layer, span.end_layer)
            for block in range(span.first_block, span.end_block)
        }
        legal = pairs and all(0 <= layer < 3 and skip <= block < 4 for layer, block in pairs) and not pairs & covered
        if legal:
            coverage, covered = coverage.with_span(span), covered | pairs
        else:
            with pytest.raises(ValueError, match="does not tile"):
                coverage.with_span(span)
        assert coverage.num_missing == 3 * (4 - skip) - len(covered)
        assert coverage.is_complete == (len(covered) == 3 * (4 - skip))


def test_a_chunk_completes_whole_blocks_and_the_last_one_a_partial_block():
    assert blocks_completed(0, 15, False, 16) == (0, 0)
    assert blocks_completed(0, 16, False, 16) == (0, 1)
    assert blocks_completed(15, 40, False, 16) == (0, 2)
    assert blocks_completed(32, 40, True, 16) == (2, 3)
    assert blocks_completed(32, 48, True, 16) == (2, 3)


def test_no_block_complete_is_no_span():
    assert spans_of_chunk(0, 15, False, 16, ((0, 2), (2, 3))) == ()


def test_layer_groups_cover_the_layers_in_order():
    assert layer_groups(5, 2) == ((0, 2), (2, 4), (4, 5))
    assert layer_groups(2, 8) == ((0, 2),)
    with pytest.raises(ValueError, match="at least 1"):
        layer_groups(4, 0)


def test_a_chunk_that_goes_backwards_is_refused():
    with pytest.raises(ValueError, match="cannot reach"):
        blocks_completed(5, 4, False, 16)


def test_clip_keeps_drops_or_cuts():
    span = Span(0, 2, 3, 6)
    assert clip(span, 0) == clip(span, 3) == span
    assert clip(span, 4) == Span(0, 2, 4, 6)
    assert clip(span, 6) is None


def test_spans_join_where_both_make_a_rectangle_in_the_order_of_their_bytes():
    assert join(Span(0, 2, 1, 4), Span(2, 3, 1, 4)) == Span(0, 3, 1, 4)
    assert join(Span(0, 2, 1, 4), Span(0, 2, 4, 9)) == Span(0, 2, 1, 9)
    assert join(Span(0, 2, 1, 4), None) is None
    for apart in (Span(2, 3, 1, 3), Span(3, 4, 1, 4), Span(0, 2, 5, 6), Span(0, 1, 4, 5), Span(2, 3, 4, 5)):
        assert join(Span(0, 2, 1, 4), apart) is None


def test_a_span_weighs_what_its_blocks_and_layers_weigh():
    layout = KVLayout(num_layers=4, num_kv_heads=2, block_tokens=16, head_dim=8, dtype="bfloat16", model="m")
    assert Span(1, 3, 0, 5).num_bytes(layout) == 2 * 5 * (2 * 2 * 16 * 8 * 2)


def test_the_last_block_is_never_skipped():
    assert max_skip_blocks(1, 16) == 0
    assert max_skip_blocks(16, 16) == 0
    assert max_skip_blocks(17, 16) == 1
