"""Checks of the merge of partial results, to be run in the interpreter (see interpreter.py)."""

import torch

from twinpool.kernels.decode_plan import make_decode_plan
from twinpool.kernels.merge_partials import merge_partials, merge_partials_reference
from twinpool.kernels.tiles import Gpu, choose_decode_tiles

FIRST_ITEMS = [0, 20, 21, 21, 60, 62]  # 20 parts, one, none, 39, two
NEW_TOKENS = [2, 1, 0, 1, 2]


def check_merge(head_dim, empty_parts):
    generator = torch.Generator().manual_seed(0)
    tiles = choose_decode_tiles(Gpu("cuda", 90), head_dim, torch.float32, 4)
    plan = make_decode_plan(5, 4, 2, head_dim, tiles, 100, torch.device("cpu"), most_queries=2)
    plan.first_items.copy_(torch.tensor(FIRST_ITEMS))
    plan.partials.copy_(torch.randn(plan.partials.shape, generator=generator))
    plan.lses.copy_(20 * torch.randn(plan.lses.shape, generator=generator))
    if empty_parts:  # parts whose keys a row does not see
        plan.lses[::3] = -torch.inf
        plan.partials[::3] = torch.nan
    bounds = torch.tensor([0, *NEW_TOKENS]).cumsum(0).int()
    out = torch.full((6, 4, head_dim), torch.nan)
    merge_partials(plan, bounds, out)
    for sequence, (first, end, new) in enumerate(zip(FIRST_ITEMS, FIRST_ITEMS[1:], NEW_TOKENS, strict=False)):
        rows = out[bounds[sequence] : bounds[sequence + 1]]
        if end - first < 2:
            assert rows.isnan().all()
            continue
        expected = merge_partials_reference(plan.partials[first:end].double(), plan.lses[first:end].double())
        queries = expected.view(2, 2, 2, head_dim).transpose(0, 1).reshape(2, 4, head_dim)[:new]
        torch.testing.assert_close(rows.double(), queries, atol=1e-5, rtol=1e-5)
