"""Writes keys and values into a paged pool and attends over them, for a packed batch, on a CPU in plain torch.

Knows no model, no block pool and no request; what to read and write is attention_plan.py's.

Shape letters are those of attention_plan.py.
"""

import torch
import torch.nn.functional as F

from twinpool.kernels.attention_plan import (
    QUERY_TILE,
    AttentionPlan,
    DecodeGroup,
    PrefillSequence,
    View,
    plan_attention,
)
from twinpool.kernels.deterministic_attention import attend_deterministically

__all__ = ["QUERY_TILE", "AttentionPlan", "paged_attention", "plan_attention", "write_kv"]


def write_kv(kv_TED: torch.Tensor, pool: torch.Tensor, layer: int, plan: AttentionPlan) -> None:
    """Write the step's keys and values into one layer of the pool.

    The unused slots of a block that the step begins are set to zero, so that whatever was left there (NaN even) never
    meets a sequence that does not own it: attention masks those slots, but 0 * NaN is NaN.

    Args:
        kv_TED: ``[T, 2 * K, D]``, the K keys of a token before its K values; pool's dtype, any strides.
    """
    head_dim = pool.shape[-1]
    first = layer * 2 * plan.num_kv_heads
    if plan.fresh_tiles is not None:
        _tiles(pool)[first:].index_fill_(0, plan.fresh_tiles, 0)
    rows = pool.view(-1, head_dim)[first * pool.shape[-2] :]
    rows.index_copy_(0, plan.write_rows, kv_TED.reshape(-1, head_dim))


def paged_attention(q_THD: torch.Tensor, pool: torch.Tensor, layer: int, plan: AttentionPlan) -> torch.Tensor:
    """Causal attention of the step's queries over their sequences' blocks, scaled by ``D ** -0.5``.

    In a layer with a window w, the query at position p sees the keys in (p - w, p]. Grouped heads are folded into the
    query length, which a CPU computes 8 to 18 times faster than ``enable_gqa``. Each row's result depends on that
    sequence's own written slots only.

    Args:
        q_THD: pool's dtype, any strides. The step's keys and values were written by ``write_kv`` before.

    Returns:
        ``[T, H * D]``, contiguous.
    """
    num_tokens, num_heads, head_dim = q_THD.shape
    view = plan.views[layer]
    if len(view.decodes) == 1 and not view.prefills:
        return _attend_decodes(q_THD, pool, layer, plan, view.decodes[0]).reshape(num_tokens, num_heads * head_dim)
    out_TE = torch.empty((num_tokens, num_heads * head_dim), dtype=q_THD.dtype)
    if plan.bench is not None:
        layer_tiles = _tiles(pool)[layer * 2 * plan.num_kv_heads :]
        attend_deterministically(q_THD, layer_tiles, view.deterministic, plan.bench, plan.scratch, out_TE)
    for decodes in view.decodes:
        attended = _attend_decodes(q_THD.index_select(0, decodes.rows), pool, layer, plan, decodes)
        out_TE.index_copy_(0, decodes.rows, attended.reshape(len(decodes.rows), -1))
    for sequence in view.prefills:
        _attend_prefill(q_THD, pool, layer, plan, view, sequence, out_TE)
    return out_TE


def _tiles(pool: torch.Tensor) -> torch.Tensor:
    return pool.view(-1, pool.shape[-2] * pool.shape[-1])


def _read_kv(pool: torch.Tensor, layer: int, tiles: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Copy whole blocks of one layer out of the pool: ``[2 * R * K * M, B * D]``, valid until the next call."""
    gathered = plan.scratch[: len(tiles)]
    torch.index_select(_tiles(pool)[layer * 2 * plan.num_kv_heads :], 0, tiles, out=gathered)
    return gathered


def _attend_decodes(
    q_RHD: torch.Tensor, pool: torch.Tensor, layer: int, plan: AttentionPlan, decodes: DecodeGroup
) -> torch.Tensor:
    num_rows, _, head_dim = q_RHD.shape
    kv = _read_kv(pool, layer, decodes.tiles, plan).view(2, num_rows, plan.num_kv_heads, -1, head_dim)
    keys, values = kv[:, :, :, decodes.first : decodes.end].unbind()
    q_RKGD = q_RHD.reshape(num_rows, plan.num_kv_heads, plan.group, head_dim)
    return F.scaled_dot_product_attention(q_RKGD, keys, values, attn_mask=decodes.mask)


def _attend_prefill(
    q_THD: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    plan: AttentionPlan,
    view: View,
    sequence: PrefillSequence,
    out_TE: torch.Tensor,
) -> None:
    assert view.tile_mask is not None
    head_dim, heads, group = q_THD.shape[-1], plan.num_kv_heads, plan.group
    keys, values = _read_kv(pool, layer, sequence.tiles, plan).view(2, 1, heads, -1, head_dim)
    width, first_query = view.tile_mask.shape[1], sequence.context - sequence.num_tokens
    for start in range(0, sequence.num_tokens, QUERY_TILE):
        end = min(start + QUERY_TILE, sequence.num_tokens)
        low = 0 if view.window is None else max(first_query + start + 1 - view.window, 0)
        seen = slice(max(low - sequence.first_position, 0), first_query + end - sequence.first_position)
        rows = slice(sequence.first_row + start, sequence.first_row + end)
        q_1KQD = q_THD[rows].view(-1, heads, group, head_dim).transpose(0, 1).reshape(1, heads, -1, head_dim)
        mask_QC = view.tile_mask[(QUERY_TILE - (end - start)) * group :, width - (seen.stop - seen.start) :]
        attended = F.scaled_dot_product_attention(q_1KQD, keys[:, :, seen], values[:, :, seen], attn_mask=mask_QC)
        out_TE[rows] = attended.reshape(heads, end - start, -1).transpose(0, 1).reshape(end - start, -1)
