"""Checks of the prefill kernel, to be run in the interpreter (see interpreter.py)."""

import numpy as np
import torch
from decode_checks import attend as attend_short
from paged_case import PagedCase

from twinpool.kernels.prefill_attention import prefill_attention
from twinpool.kernels.prefill_plan import plan_prefill
from twinpool.kernels.tiles import Gpu, Tiles, choose_prefill_tiles

SMALL = {"block_m": 16, "block_n": 32, "num_warps": 4, "num_stages": 1, "precision": "ieee"}


def attend(case, tiles, most_short=0):
    new_tokens, context = (np.array(column, np.int32) for column in zip(*case.lengths, strict=True))
    group = case.num_heads // case.kv.shape[2]
    plan = plan_prefill(
        new_tokens, context, group=group, block_m=tiles.block_m, most_short=most_short, window=case.window
    )
    tables = (case.table, case.cu_seqlens, case.context, torch.from_numpy(plan))
    prefill_attention(case.q, case.kv, *tables, tiles, case.out, case.window)


def check_attention(heads, lengths, options, tiles, most_short=0):
    case = PagedCase(heads, [tuple(pair) for pair in lengths], **options)
    chosen = Tiles(**tiles) if tiles else choose_prefill_tiles(Gpu("cuda", 90), heads[2], case.q.dtype)
    attend(case, chosen, most_short)
    case.check(lambda new: new > most_short)


def check_mixed_batch():
    case = PagedCase((4, 2, 64), [(1, 40), (30, 50), (2, 2), (0, 0), (9, 9)], dtype="fp16")
    attend(case, Tiles(**SMALL), most_short=2)
    case.check(lambda new: new > 2)
    attend_short(case, most_queries=2)
    case.check()


def check_no_tiles():
    case = PagedCase((2, 1, 64), [(1, 20)])
    attend(case, Tiles(**SMALL), most_short=1)
    assert case.out.isnan().all()


def check_distant_blocks():
    for block_tokens in (16, 128):
        case = PagedCase((2, 1, 64), [(20, 120)], dtype="fp16", block_tokens=block_tokens).spread()
        attend(case, Tiles(**SMALL))
        case.check()


def check_that_widening_is_what_saves_bfloat16():
    from twinpool.kernels import prefill_attention as module

    case = PagedCase((2, 1, 64), [(20, 40)], dtype="bf16")
    attend(case, Tiles(**SMALL))
    case.check()
    honest = module.interpreting
    module.interpreting = lambda: False
    try:
        attend(case, Tiles(**SMALL))
    finally:
        module.interpreting = honest
    assert not torch.allclose(case.out.double(), case.expected(), atol=0.1)
