"""Every layer and every KV head of a model has a rank, and copies are spread evenly."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.rank_shape import RankLayout, RankShare, WorkerShape, shares_of, stage_layers
from twinpool.model.kv_layout import KVLayout


def model(num_layers: int, num_kv_heads: int) -> KVLayout:
    return KVLayout(num_layers, num_kv_heads, block_tokens=4, head_dim=8, dtype="bfloat16", model="m")


@given(st.integers(1, 50), st.integers(1, 50))
def test_stages_tile_the_layers_in_order_and_the_first_ones_have_one_more(num_layers, stages):
    stages = min(stages, num_layers)
    ranges = [stage_layers(num_layers, stages, stage) for stage in range(stages)]
    assert [layer for first, end in ranges for layer in range(first, end)] == list(range(num_layers))
    sizes = [end - first for first, end in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_fewer_layers_than_stages_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"3 layers .* pipeline_parallel 4"):
        stage_layers(3, 4, 0)
    with pytest.raises(ValueError, match=r"3 layers .* pipeline_parallel 4"):
        shares_of(WorkerShape(1, 4), model(3, 2))


@pytest.mark.parametrize(("heads", "tensor_parallel"), [(6, 4), (4, 6), (3, 2), (2, 3)])
def test_heads_that_neither_divide_nor_repeat_are_refused_with_both_numbers(heads, tensor_parallel):
    with pytest.raises(ValueError, match=f"{heads} KV heads and tensor_parallel {tensor_parallel}"):
        shares_of(WorkerShape(tensor_parallel), model(4, heads))


@pytest.mark.parametrize("name", ["tensor_parallel", "pipeline_parallel"])
def test_a_shape_of_no_ranks_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        WorkerShape(**{name: 0})


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(4, 9))
def test_each_layer_and_head_has_the_same_number_of_ranks_numbered_from_0(heads, tensor, stages, layers):
    if heads % tensor and tensor % heads:
        return
    shares = shares_of(WorkerShape(tensor, stages), model(layers, heads))
    assert [share.rank for share in shares] == list(range(tensor * stages))
    for layer in range(layers):
        for head in range(heads):
            holders = [
                share
                for share in shares
                if share.first_layer <= layer < share.end_layer and share.first_head <= head < share.end_head
            ]
            assert [share.copy for share in holders] == list(range(max(1, tensor // heads)))
            assert {share.num_copies for share in holders} == {len(holders)}


def test_neighbours_hold_copies_of_one_head_and_stages_follow_each_other():
    assert shares_of(WorkerShape(4, 2), model(3, 2))[1:6] == (
        RankShare(1, 0, 2, 0, 1, copy=1, num_copies=2),
        RankShare(2, 0, 2, 1, 2, copy=0, num_copies=2),
        RankShare(3, 0, 2, 1, 2, copy=1, num_copies=2),
        RankShare(4, 2, 3, 0, 1, copy=0, num_copies=2),
        RankShare(5, 2, 3, 0, 1, copy=1, num_copies=2),
    )


def test_a_ranks_layout_is_the_models_with_its_own_layers_and_heads():
    layout = shares_of(WorkerShape(2, 2), model(5, 4))[3].layout(model(5, 4))
    assert layout == model(2, 2)


def test_a_ranks_own_layers_are_named_as_the_model_counts_them():
    last = shares_of(WorkerShape(1, 2), model(5, 4))[1]
    assert last.to_model(Span(0, 2, 3, 7)) == Span(3, 5, 3, 7)
    for span in (Span(0, 3, 0, 1), Span(1, 1, 0, 1), Span(-1, 1, 0, 1)):
        with pytest.raises(ValueError, match="rank 1 holds 2 layers"):
            last.to_model(span)


def test_ranks_of_any_shape_share_their_models_digest_and_know_their_own_part():
    whole, part = RankLayout(model(5, 4)), RankLayout(model(5, 4), WorkerShape(2, 2), 3)
    assert whole.model_digest == part.model_digest
    assert whole.pool == model(5, 4)
    assert part.pool == model(2, 2)
    assert part.share == RankShare(3, 3, 5, 2, 4)
    assert whole.peer(part.model_digest, part.shape, part.rank) == part
    assert "rank 3 of 2 x 2: layers 3 to 4, KV heads 2 to 3" in part.describe()


def test_a_rank_of_a_smaller_model_is_not_taken_for_a_part_of_a_larger_one():
    half = RankLayout(model(5, 2))  # as large as a rank of two of the other
    assert half.pool == RankLayout(model(5, 4), WorkerShape(2), 0).pool
    with pytest.raises(ValueError, match="of another model"):
        RankLayout(model(5, 4)).peer(half.model_digest, half.shape, half.rank)


@pytest.mark.parametrize("change", [{"model": "n"}, {"codec": "int8"}, {"dtype": "float16"}, {"block_tokens": 8}])
def test_what_makes_kv_differ_makes_the_digest_differ(change: dict[str, object]):
    assert RankLayout(replace(model(5, 4), **change)).model_digest != RankLayout(model(5, 4)).model_digest


@pytest.mark.parametrize(
    ("shape", "rank", "told"),
    [
        (WorkerShape(2), 2, "rank 2 is none of the 2"),
        (WorkerShape(2), -1, "rank -1"),
        (WorkerShape(3), 0, "4 KV heads and tensor_parallel 3"),
        (WorkerShape(1, 6), 0, "5 layers cannot fill"),
    ],
)
def test_what_a_peer_cannot_be_is_refused(shape: WorkerShape, rank: int, told: str):
    ours = RankLayout(model(5, 4))
    with pytest.raises(ValueError, match=told):
        ours.peer(ours.model_digest, shape, rank)
