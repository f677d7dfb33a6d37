"""Checks of the decode kernel and its work-list, to be run in the interpreter (see interpreter.py)."""

import torch
from paged_case import PagedCase

from twinpool.kernels import decode_plan
from twinpool.kernels.decode_attention import decode_attention
from twinpool.kernels.decode_plan import make_decode_plan, plan_decode, plan_decode_reference
from twinpool.kernels.tiles import Gpu, choose_decode_tiles


def attend(case, *, num_sms=4, least_chunk=32, most_queries=1, most_splits=64):
    decode_plan.LEAST_CHUNK_KEYS = least_chunk
    num_heads, num_kv_heads, head_dim = case.num_heads, case.kv.shape[2], case.kv.shape[4]
    tiles = choose_decode_tiles(Gpu("cuda", 90), head_dim, case.q.dtype, most_queries * num_heads // num_kv_heads)
    plan = make_decode_plan(
        len(case.lengths),
        num_heads,
        num_kv_heads,
        head_dim,
        tiles,
        num_sms,
        case.q.device,
        window=case.window,
        most_queries=most_queries,
        most_splits=most_splits,
    )
    plan.partials.fill_(torch.nan)
    plan.lses.fill_(torch.nan)
    plan_decode(plan, case.cu_seqlens, case.context)
    decode_attention(case.q, case.kv, case.table, case.cu_seqlens, case.context, plan, tiles, case.out)
    return plan


def check_attention(heads, lengths, options, launch, least_splits):
    case = PagedCase(heads, [tuple(pair) for pair in lengths], **options)
    plan = attend(case, **launch)
    case.check(lambda new: new <= launch.get("most_queries", 1))
    assert plan.first_items.diff().amax() >= least_splits


def check_empty_batch():
    case = PagedCase((2, 1, 64), [])
    assert attend(case).sequences.eq(-1).all()
    assert case.out.shape == (0, 2, 64)


def check_plan(lengths, num_sms, window, most_splits, most_queries):
    cu_seqlens = torch.tensor([0, *(new for new, _ in lengths)]).cumsum(0).int()
    context = torch.tensor([context for _, context in lengths], dtype=torch.int32)
    tiles = choose_decode_tiles(Gpu("cuda", 90), 64, torch.bfloat16, most_queries)
    plan = make_decode_plan(
        len(lengths),
        1,
        1,
        64,
        tiles,
        num_sms,
        context.device,
        window=window,
        most_queries=most_queries,
        most_splits=most_splits,
    )
    plan.sequences.fill_(99)
    plan_decode(plan, cu_seqlens, context)
    first_items, sequences, chunk = plan_decode_reference(plan, cu_seqlens, context)
    assert plan.first_items.tolist() == first_items
    assert plan.sequences.tolist() == sequences
    assert plan.chunk.item() == chunk


def check_splits(lengths, splits):
    tiles = choose_decode_tiles(Gpu("cuda", 90), 64, torch.bfloat16, 1)
    plan = make_decode_plan(len(lengths), 1, 1, 64, tiles, 16, torch.device("cpu"))
    assert plan.target_items == 32
    context = torch.tensor([context for _, context in lengths], dtype=torch.int32)
    plan_decode(plan, torch.arange(len(lengths) + 1, dtype=torch.int32), context)
    assert plan.first_items.diff().tolist() == splits


def check_distant_blocks():
    for block_tokens in (16, 128):
        case = PagedCase((2, 1, 64), [(1, 120)], dtype="fp16", block_tokens=block_tokens).spread()
        attend(case)
        case.check()


def check_that_widening_is_what_saves_bfloat16():
    from twinpool.kernels import decode_attention as module

    case = PagedCase((2, 1, 64), [(1, 40)], dtype="bf16")
    attend(case)
    case.check()
    honest = module.interpreting
    module.interpreting = lambda: False
    try:
        attend(case)
    finally:
        module.interpreting = honest
    assert not torch.allclose(case.out.double(), case.expected(), atol=0.1)
