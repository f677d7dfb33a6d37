import pytest
import torch

from twinpool.kernels.decode_attention import decode_attention
from twinpool.kernels.decode_plan import make_decode_plan, plan_decode
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


LAYERS = [
    (lambda q, kv, out: (q[0], kv, out), r"must both be \[T, H, D\]"),
    (lambda q, kv, out: (q, kv, out[:2]), r"must both be \[T, H, D\]"),
    (lambda q, kv, out: (q, kv[:, :1], out), r"must be \[N, 2, K, B, D\]"),
    (lambda q, kv, out: (q, kv[0], out), r"must be \[N, 2, K, B, D\]"),
    (lambda q, kv, out: layer(head_dim=72), "head size 72"),
    (lambda q, kv, out: (q, kv[..., :32], out), "head size 64 of q and 32 of kv"),
    (lambda q, kv, out: layer(block_tokens=48), "blocks of 48 tokens"),
    (lambda q, kv, out: layer(heads=5), "5 heads over 2 KV heads"),
    (lambda q, kv, out: layer(heads=34), "34 heads over 2 KV heads"),
    (lambda q, kv, out: layer(dtype=torch.float64), "float64"),
    (lambda q, kv, out: (q.bfloat16(), kv, out), "bfloat16"),
    (lambda q, kv, out: (q.to("meta"), kv, out), "q on meta"),
    (lambda q, kv, out: (torch.zeros(3, 8, 64, dtype=torch.float16)[:, ::2], kv, out), "q has strides"),
    (lambda q, kv, out: (q, kv, out.transpose(0, 1).contiguous().transpose(0, 1)), "out has strides"),
    (
        lambda q, kv, out: (torch.zeros(3 * 260, dtype=torch.float16).as_strided(q.shape, (260, 64, 1)), kv, out),
        "q: st",
    ),
    (lambda q, kv, out: (torch.zeros(769, dtype=torch.float16)[1:].view(q.shape), kv, out), "q: stride 256"),
    (lambda q, kv, out: (q, kv.transpose(2, 3).contiguous().transpose(2, 3), out), "layer must be contiguous"),
    (lambda q, kv, out: (q, kv[:1].expand(5, -1, -1, -1, -1), out), None),
]


@pytest.mark.parametrize(("change", "complaint"), LAYERS)
def test_queries_a_layer_and_an_output_that_no_variant_takes_are_refused(change, complaint):
    if complaint is None:
        check_layer(*change(*layer()))
        return
    with pytest.raises(ValueError, match=complaint):
        check_layer(*change(*layer()))


BATCHES = [
    (lambda table, bounds, context: (table, bounds[1:], context), "must be S.1 and S"),
    (lambda table, bounds, context: (table[:2], bounds, context), r"must be \[S, M\]"),
    (lambda table, bounds, context: (table.T.contiguous().T, bounds, context), "rows contiguous"),
    (lambda table, bounds, context: (table, bounds.long(), context), "must be int32"),
    (lambda table, bounds, context: (table.short(), bounds, context), "the table int32 or int64"),
    (lambda table, bounds, context: (table, bounds, torch.ones(6, dtype=torch.int32)[::2]), "must be contiguous"),
    (lambda table, bounds, context: (table.to("meta"), bounds, context), "table on meta, but q on cpu"),
]


@pytest.mark.parametrize(("change", "complaint"), BATCHES)
def test_tables_and_lengths_that_are_no_packed_batch_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_batch(layer()[0], *change(*batch()))


def decode_plan_for(num_sequences=3, **options):
    tiles = choose_decode_tiles(HOPPER, 64, torch.float16, 2)
    return make_decode_plan(num_sequences, 4, 2, 64, tiles, 8, torch.device("cpu"), **options), tiles


def test_both_wrappers_refuse_before_they_launch():
    q, kv, out = layer()
    plan, tiles = decode_plan_for()
    with pytest.raises(ValueError, match="blocks of 48"):
        decode_attention(q, torch.zeros(5, 2, 2, 48, 64, dtype=q.dtype), *batch(), plan, tiles, out)
    whole = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="blocks of 48"):
        long = choose_prefill_tiles(HOPPER, 64, torch.float16)
        prefill_attention(q, torch.zeros(5, 2, 2, 48, 64, dtype=q.dtype), *batch(), whole, long, out)


def test_a_plan_made_for_another_batch_is_refused():
    q, kv, out = layer()
    plan, tiles = decode_plan_for(num_sequences=2)
    with pytest.raises(ValueError, match="the plan was made for"):
        decode_attention(q, kv, *batch(), plan, tiles, out)
    with pytest.raises(ValueError, match="made for 2 sequences, not 3"):
        plan_decode(plan, *batch()[1:])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_sequences": 4097}, "4097 sequences"),
        ({"most_queries": 0}, "0 queries"),
        ({"most_queries": 33}, "33 queries are 66 rows"),
        ({"most_splits": 65}, "65 splits"),
        ({"window": 0}, "window 0"),
    ],
)
def test_a_plan_out_of_range_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        decode_plan_for(**options)


@pytest.mark.parametrize(
    ("tiles", "complaint"),
    [
        (torch.zeros(1, 3, dtype=torch.int32), r"must be \[C, 2\]"),
        (torch.zeros(1, 2), "int32 on cpu is wanted"),
        (torch.zeros(1, 2, dtype=torch.int32, device="meta"), "int32 on cpu is wanted"),
    ],
)
def test_tiles_of_queries_that_are_no_list_are_refused(tiles, complaint):
    q, kv, out = layer()
    with pytest.raises(ValueError, match=complaint):
        prefill_attention(q, kv, *batch(), tiles, choose_prefill_tiles(HOPPER, 64, q.dtype), out)


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
