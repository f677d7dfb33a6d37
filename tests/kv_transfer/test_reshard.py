"""Chunks move every element that a target rank lacks exactly once, whatever the shapes of the two workers."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twinpool.kv_transfer.chunks import cut_group, max_chunk_bytes
from twinpool.kv_transfer.plan import Span, layer_groups, max_skip_blocks, spans_of_chunk
from twinpool.kv_transfer.rank_shape import WorkerShape, shares_of
from twinpool.kv_transfer.reshard import HeadSpan, RequestBlocks, chunks_by_link, plan_routes

from .reshard_model import Worlds, build_blocks, build_model, fits

SHAPES = [WorkerShape(tensor, pipeline) for tensor, pipeline in product((1, 2, 4), (1, 2))]
PAIRS = list(product(SHAPES, SHAPES))
HEADS = (1, 2, 3, 4, 6, 8)
REQUESTS = [(1, 0), (5, 0), (6, 1), (9, 3)]  # (tokens, blocks at the target), in blocks of 2 tokens
NAMES = "{0.tensor_parallel}x{0.pipeline_parallel}".format
NO_LIMIT = 1 << 30


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=NAMES)
def test_every_needed_element_moves_once_to_each_rank_and_nothing_else_is_written(source, target):
    for heads, layers, (num_tokens, skip), limit in product(HEADS, (2, 3, 5), REQUESTS, (40, NO_LIMIT)):
        model = build_model(layers, heads)
        if not (fits(source, model) and fits(target, model)):
            continue
        blocks = build_blocks(model, num_tokens, skip)
        worlds = Worlds(model, source, target, blocks)
        for ranks, chunks in chunks_by_link(model, source, target, blocks, limit).items():
            for chunk in chunks:
                worlds.move(ranks, chunk)
        worlds.check_complete()


@st.composite
def streams(draw):
    """(model, source, target, blocks, ends of the prefill's chunks, layers per group, limit)."""
    source, target = (WorkerShape(draw(st.integers(1, 8)), draw(st.integers(1, 3))) for _ in range(2))
    model = build_model(
        draw(st.integers(3, 9)), draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    )
    assume(fits(source, model) and fits(target, model))
    num_tokens = draw(st.integers(1, 40))
    skip = draw(st.integers(0, max_skip_blocks(num_tokens, model.block_tokens)))
    ends = sorted(draw(st.sets(st.integers(1, num_tokens), max_size=5)) | {num_tokens})
    limit = draw(st.integers(1, 2 * model.block_bytes))
    return model, source, target, build_blocks(model, num_tokens, skip), ends, draw(st.integers(1, 9)), limit


def groups(model, shape, blocks, ends, per_group):
    """The spans that become ready, as the model counts layers: by prefill chunk, stage and layer group."""
    stages = {share.first_layer: share for share in shares_of(shape, model)}.values()
    before = 0
    for end in ends:
        for share in stages:
            layers = layer_groups(share.num_layers, per_group)
            for span in spans_of_chunk(before, end, end == blocks.num_tokens, model.block_tokens, layers):
                yield share.to_model(span)
        before = end


@given(streams())
def test_a_request_that_streams_group_by_group_arrives_whole(stream):
    model, source, target, blocks, ends, per_group, limit = stream
    worlds = Worlds(model, source, target, blocks)
    routes = plan_routes(model, source, target)
    for span in groups(model, source, blocks, ends, per_group):
        for route in routes:
            for chunk in route.chunks(span, blocks.skip_blocks, model, limit):
                worlds.move(route.ranks, chunk)
    worlds.check_complete()


@given(streams())
def test_chunks_tile_their_group_within_the_limit(stream):
    model, source, target, blocks, ends, per_group, limit = stream
    routes = plan_routes(model, source, target)
    for span, route in product(groups(model, source, blocks, ends, per_group), routes):
        group = route.group(span, blocks.skip_blocks)
        chunks = list(route.chunks(span, blocks.skip_blocks, model, limit))
        sizes = [chunk.of_model.num_bytes(model) for chunk in chunks]
        assert sum(sizes) == (group.num_bytes(model) if group else 0)
        assert all(0 < size <= route.max_chunk_bytes(model, limit) for size in sizes)
        if group and group.num_bytes(model) <= limit:
            assert [chunk.of_model for chunk in chunks] == [group]


@given(streams())
def test_a_chunk_is_the_same_in_the_coordinates_of_both_ends_and_inside_their_pools(stream):
    model, source, target, blocks, _, _, limit = stream
    sources, targets = shares_of(source, model), shares_of(target, model)
    for (s, t), chunks in chunks_by_link(model, source, target, blocks, limit).items():
        for chunk in chunks:
            for share, part in ((sources[s], chunk.at_source), (targets[t], chunk.at_target)):
                assert 0 <= part.first_head < part.end_head <= share.num_heads
                assert part.span.is_within(share.num_layers, len(blocks.source_ids))
                assert part.first_head + share.first_head == chunk.of_model.first_head
                assert part.end_head + share.first_head == chunk.of_model.end_head
                assert share.to_model(part.span) == chunk.of_model.span
                assert part.num_bytes(share.layout(model)) == chunk.of_model.num_bytes(model)


@given(streams())
def test_equal_shapes_have_one_link_per_rank_with_the_chunks_of_cut_group(stream):
    model, shape, _, blocks, _, per_group, limit = stream
    shares, routes = shares_of(shape, model), plan_routes(model, shape, shape)
    assert [route.ranks for route in routes] == [(rank, rank) for rank in range(shape.num_ranks)]
    for route, share in zip(routes, shares, strict=True):
        layout = share.layout(model)
        assert route.max_chunk_bytes(model, limit) == max_chunk_bytes(layout, limit)
        for first, end in layer_groups(share.num_layers, per_group):
            span = Span(first, end, blocks.skip_blocks, len(blocks.source_ids))
            chunks = list(route.chunks(share.to_model(span), blocks.skip_blocks, model, limit))
            today = [HeadSpan(part, 0, share.num_heads) for part in cut_group(span, layout, limit)]
            assert [chunk.at_source for chunk in chunks] == [chunk.at_target for chunk in chunks] == today


def test_between_single_ranks_the_chunks_count_as_the_model_does():
    model, one = build_model(5, 3), WorkerShape()
    blocks = build_blocks(model, 9, 1)
    chunks = chunks_by_link(model, one, one, blocks, 100)
    today = [HeadSpan(span, 0, 3) for span in cut_group(Span(0, 5, 1, 5), model, 100)]
    assert list(chunks) == [(0, 0)]
    assert [chunk.of_model for chunk in chunks[0, 0]] == [chunk.at_source for chunk in chunks[0, 0]] == today


@given(streams())
def test_copies_of_a_head_send_equally_many_layers_give_or_take_one(stream):
    model, source, target, *_ = stream
    sent = Counter()
    for route in plan_routes(model, source, target):
        sent[route.source.rank] += route.num_layers * (route.end_head - route.first_head)
    shares = shares_of(source, model)
    for first in range(0, len(shares), shares[0].num_copies):
        loads = [sent[share.rank] for share in shares[first : first + shares[0].num_copies]]
        if len(loads) > 1:
            assert max(loads) - min(loads) <= 1


def test_copies_meet_copies_and_a_link_carries_one_rectangle():
    model = build_model(6, 2)
    links = [route.ranks for route in plan_routes(model, WorkerShape(4, 1), WorkerShape(4, 2))]
    assert links == [(0, 0), (0, 4), (1, 1), (1, 5), (2, 2), (2, 6), (3, 3), (3, 7)]
    joined = plan_routes(model, WorkerShape(4), WorkerShape(1))
    assert [(r.ranks, r.first_layer, r.end_layer, r.first_head) for r in joined] == [
        ((0, 0), 0, 3, 0),
        ((1, 0), 3, 6, 0),
        ((2, 0), 0, 3, 1),
        ((3, 0), 3, 6, 1),
    ]


@given(streams())
def test_a_link_is_named_once_and_in_order(stream):
    model, source, target, *_ = stream
    links = [route.ranks for route in plan_routes(model, source, target)]
    assert links == sorted(set(links))


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_bytes_are_those_of_the_heads_that_move(dtype, item_bytes):
    model = replace(build_model(4, 8, block_tokens=16, head_dim=64), dtype=dtype)
    (route, _) = plan_routes(model, WorkerShape(1), WorkerShape(2))
    group = route.group(Span(1, 3, 0, 5), 2)
    assert group == HeadSpan(Span(1, 3, 2, 5), 0, 4)
    assert group.num_bytes(model) == 2 * 3 * 2 * 4 * 16 * 64 * item_bytes


def test_a_group_that_the_target_has_or_another_link_carries_moves_nothing():
    model = build_model(4, 2)
    first, last = plan_routes(model, WorkerShape(1), WorkerShape(1, 2))
    assert last.group(Span(0, 2, 0, 5), 0) is None
    assert first.group(Span(0, 2, 0, 5), 5) is None
    assert list(first.chunks(Span(2, 4, 0, 5), 0, model, NO_LIMIT)) == []
    assert first.group(Span(1, 4, 0, 5), 3) == HeadSpan(Span(1, 2, 3, 5), 0, 2)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"source_ids": (1, 2)}, "source_ids: 2 blocks for 5 tokens, which take 3"),
        ({"target_ids": (1, 2, 3, 4)}, "target_ids: 4 blocks"),
        ({"target_ids": (1, 2, 1)}, "target_ids: a block is named twice"),
        ({"source_ids": (1, -2, 0)}, "source_ids: a block is named twice, or negative"),
        ({"skip_blocks": 3}, r"skip_blocks is 3, .* in \[0, 2\]"),
        ({"skip_blocks": -1}, "skip_blocks is -1"),
    ],
)
def test_blocks_that_cannot_be_such_a_request_are_refused_by_name(changed, what):
    model, shape = build_model(4, 2), WorkerShape()
    blocks = replace(RequestBlocks(5, 0, (1, 2, 3), (4, 5, 6)), **changed)
    with pytest.raises(ValueError, match=what):
        chunks_by_link(model, shape, shape, blocks, NO_LIMIT)


@pytest.mark.parametrize(("source", "target"), [(4, 1), (1, 4)])
def test_a_shape_that_the_heads_do_not_go_into_is_refused_at_either_end(source, target):
    with pytest.raises(ValueError, match="6 KV heads and tensor_parallel 4"):
        plan_routes(build_model(4, 6), WorkerShape(source), WorkerShape(target))
