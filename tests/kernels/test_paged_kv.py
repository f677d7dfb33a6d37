import pytest
import torch

from twinpool.kernels.decode_attention import decode_attention
from twinpool.kernels.decode_plan import make_decode_plan
from twinpool.kernels.paged_kv import check_batch, check_layer, paged_attention_reference
from twinpool.kernels.prefill_attention import prefill_attention
from twinpool.kernels.tiles import Gpu, choose_decode_tiles, choose_prefill_tiles

HOPPER = Gpu("cuda", 90)


def layer(heads=4, kv_heads=2, head_dim=64, block_tokens=16, dtype=torch.float16):
    q = torch.zeros(3, heads, head_dim, dtype=dtype)
    return q, torch.zeros(5, 2, kv_heads, block_tokens, head_dim, dtype=dtype), torch.empty_like(q)


def batch():
    table, bounds = torch.zeros(3, 2, dtype=torch.int32), torch.arange(4, dtype=torch.int32)
    return table, bounds, torch.ones(3, dtype=torch.int32)


def zeros(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype)


Q, KV, OUT = layer()
LAYERS = [
    ((Q[0], KV, OUT), r"must both be \[T, H, D\]"),
    ((Q, KV, OUT[:2]), r"must both be \[T, H, D\]"),
    ((Q, KV[:, :1], OUT), r"must be \[N, 2, K, B, D\]"),
    ((Q, KV[0], OUT), r"must be \[N, 2, K, B, D\]"),
    (layer(head_dim=72), "head size 72"),
    ((Q, KV[..., :32], OUT), "head size 64 of q and 32 of kv"),
    (layer(block_tokens=48), "blocks of 48 tokens"),
    (layer(heads=5), "5 heads over 2 KV heads"),
    (layer(heads=34), "34 heads over 2 KV heads"),
    (layer(dtype=torch.float64), "float64"),
    ((Q.bfloat16(), KV, OUT), "bfloat16"),
    ((Q.to("meta"), KV, OUT), "q on meta"),
    ((zeros(3, 8, 64)[:, ::2], KV, OUT), "q has strides"),
    ((Q, KV, zeros(4, 3, 64).transpose(0, 1)), "out has strides"),
    ((zeros(780).as_strided(Q.shape, (260, 64, 1)), KV, OUT), "q: stride 260"),
    ((zeros(769)[1:].view(Q.shape), KV, OUT), "q: stride 256 of tokens, or its address"),
    ((Q, zeros(5, 2, 16, 2, 64).transpose(2, 3), OUT), "layer must be contiguous"),
    ((Q, zeros(30000).as_strided(KV.shape, (4100, 2048, 1024, 64, 1)), OUT), "kv: stride 4100 of blocks"),
]


@pytest.mark.parametrize(("tensors", "complaint"), LAYERS)
def test_queries_a_layer_and_an_output_that_no_variant_takes_are_refused(tensors, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_layer(*tensors)


def test_one_layer_of_a_pool_and_a_slice_of_a_projection_are_taken():
    check_layer(zeros(3, 8, 64)[:, :4], zeros(5, 3, 2, 2, 16, 64)[:, 1], OUT)
    check_layer(Q[:0], KV[:0], OUT[:0])


TABLE, BOUNDS, CONTEXT = batch()
BATCHES = [
    ((TABLE, BOUNDS[1:], CONTEXT), "must be S.1 and S"),
    ((TABLE[:2], BOUNDS, CONTEXT), r"must be \[S, M\]"),
    ((TABLE.T.contiguous().T, BOUNDS, CONTEXT), "rows contiguous"),
    ((TABLE, BOUNDS.long(), CONTEXT), "int64 and torch.int32 lengths must be int32"),
    ((TABLE.long(), BOUNDS, CONTEXT), "int64 table"),
    ((TABLE, BOUNDS, torch.ones(6, dtype=torch.int32)[::2]), "must be contiguous"),
    ((TABLE.to("meta"), BOUNDS, CONTEXT), "table on meta, but q on cpu"),
]


@pytest.mark.parametrize(("tensors", "complaint"), BATCHES)
def test_tables_and_lengths_that_are_no_packed_batch_are_refused(tensors, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_batch(Q, *tensors)


def decode_plan_for(num_sequences=3, **options):
    tiles = choose_decode_tiles(HOPPER, 64, torch.float16, 2)
    return make_decode_plan(num_sequences, 4, 2, 64, tiles, 8, torch.device("cpu"), **options), tiles


def test_both_wrappers_refuse_before_they_launch():
    plan, tiles = decode_plan_for()
    with pytest.raises(ValueError, match="blocks of 48"):
        decode_attention(Q, zeros(5, 2, 2, 48, 64), *batch(), plan, tiles, OUT)
    whole, long = torch.zeros(1, 2, dtype=torch.int32), choose_prefill_tiles(HOPPER, 64, torch.float16)
    with pytest.raises(ValueError, match="blocks of 48"):
        prefill_attention(Q, zeros(5, 2, 2, 48, 64), *batch(), whole, long, OUT)


def test_a_plan_made_for_another_batch_is_refused():
    plan, tiles = decode_plan_for(num_sequences=2)
    with pytest.raises(ValueError, match="the plan was made for"):
        decode_attention(Q, KV, *batch(), plan, tiles, OUT)


@pytest.mark.parametrize(
    ("tiles", "complaint"),
    [
        (torch.zeros(1, 3, dtype=torch.int32), r"must be \[C, 2\]"),
        (torch.zeros(1, 2), "int32 on cpu is wanted"),
        (torch.zeros(1, 2, dtype=torch.int32, device="meta"), "int32 on cpu is wanted"),
    ],
)
def test_tiles_of_queries_that_are_no_list_are_refused(tiles, complaint):
    with pytest.raises(ValueError, match=complaint):
        prefill_attention(Q, KV, *batch(), tiles, choose_prefill_tiles(HOPPER, 64, Q.dtype), OUT)


def test_the_reference_is_the_definition():
    torch.manual_seed(0)
    q, pool = torch.randn(3, 2, 64).double(), torch.randn(3, 2, 1, 16, 64).double()
    table, bounds, context = torch.tensor([[2, 0]]), torch.tensor([0, 3]), torch.tensor([20])
    found = paged_attention_reference(q, pool, table, bounds, context, window=5)
    keys, values = (torch.cat((pool[2, part, 0], pool[0, part, 0])) for part in (0, 1))
    for query, position in enumerate((17, 18, 19)):
        seen = slice(position - 4, position + 1)
        weights = (q[query] @ keys[seen].T / 8).softmax(-1)
        torch.testing.assert_close(found[query], weights @ values[seen])
