"""Attention of few queries for each sequence over paged KV, cut along the keys so that a small batch fills a GPU.

Knows no model and no request; who computes what is decode_plan.py's, and what several parts of one sequence come to is
merge_partials.py's. Scheme: Flash-Decoding (Dao et al. 2023), with the query heads of one KV head packed into a tile.

Shape letters: T query tokens of the step, S sequences, H query heads, K key/value heads, G = H / K, D head size, B
tokens in a block, M columns of the block table, C work items, R rows of a partial result (queries x G).
"""

import math

import torch

from twinpool.kernels.decode_plan import DecodePlan
from twinpool.kernels.merge_partials import merge_partials
from twinpool.kernels.paged_kv import check_batch, check_layer, power_of_two, row_stride
from twinpool.kernels.tiles import Tiles, interpreting

try:
    import triton
    import triton.language as tl

    from twinpool.kernels.paged_flash import FLOOR, attend_tile, load_pages
except ImportError:  # triton is optional: CPUs never need it
    triton = None

# Values of these must not make another variant; strides of q, out and KV are multiples of 16 always.
UNSPECIALISED = ("table_stride", "group", "window", "scale_log2", "block_shift", "num_rows")


def decode_attention(
    q_THD: torch.Tensor,
    kv_N2KBD: torch.Tensor,
    table_SM: torch.Tensor,
    cu_seqlens: torch.Tensor,
    context_S: torch.Tensor,
    plan: DecodePlan,
    tiles: Tiles,
    out_THD: torch.Tensor,
) -> None:
    """Causal attention of the sequences with at most ``plan.most_queries`` new tokens, scaled by ``D ** -0.5``.

    Rows of other sequences are left as they are; rows of a sequence with new tokens and no context are not defined.
    Everything runs on the current stream, with a grid and arguments that depend on shapes only, so it may be captured
    in a CUDA graph.

    Args:
        q_THD: fp16, bf16 or fp32; strides (any multiple of 16, D, 1).
        kv_N2KBD: one layer of the pool, ``pool[:, layer]``; q's dtype; contiguous from K on. The step's keys and values
            are in it.
        table_SM: int32 block ids; what lies past a sequence's context is not read.
        cu_seqlens: int32 ``[S + 1]``: sequence s owns rows ``[cu_seqlens[s], cu_seqlens[s + 1])``.
        context_S: int32 tokens of each sequence, the new ones among them; 0 for a place that is not used.
        plan: filled by ``plan_decode`` for these sequences. Its partial results are overwritten.
        tiles: of ``choose_decode_tiles`` for this device.
        out_THD: like q. The rows named above are overwritten.

    Raises:
        ValueError: a shape, stride, dtype or device above does not hold. Nothing was launched.
    """
    check_layer(q_THD, kv_N2KBD, out_THD)
    check_batch(q_THD, table_SM, cu_seqlens, context_S)
    num_heads, head_dim = q_THD.shape[1:]
    _, _, num_kv_heads, block_tokens, _ = kv_N2KBD.shape
    plan.check(len(context_S), num_heads, num_kv_heads, head_dim, tiles, q_THD.device)
    if not len(context_S) or not len(q_THD):
        return
    _decode_attention_kernel[(len(plan.sequences), num_kv_heads)](
        q_THD,
        kv_N2KBD,
        table_SM,
        cu_seqlens,
        context_S,
        plan.first_items,
        plan.sequences,
        plan.chunk,
        plan.partials,
        plan.lses,
        out_THD,
        row_stride(q_THD),
        row_stride(out_THD),
        table_SM.stride(0),
        kv_N2KBD.stride(0),
        num_kv_heads * block_tokens * head_dim,
        block_tokens * head_dim,
        num_heads // num_kv_heads,
        plan.window,
        math.log2(math.e) * head_dim**-0.5,
        block_tokens.bit_length() - 1,
        plan.lses.shape[2],
        HEAD_DIM=head_dim,
        BLOCK_D=power_of_two(head_dim),
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        GATHER=block_tokens < tiles.block_n,
        UPCAST=interpreting(),
        PRECISION=tiles.precision,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    merge_partials(plan, cu_seqlens, out_THD)


if triton is not None:

    @triton.jit(do_not_specialize=UNSPECIALISED)
    def _decode_attention_kernel(  # type: ignore[no-untyped-def]
        q_ptr,  # [T, H, D]
        kv_ptr,  # [N, 2, K, B, D]
        table_ptr,  # int32 [S, M]
        cu_ptr,  # int32 [S + 1]
        context_ptr,  # int32 [S]
        first_item_ptr,  # int32 [S + 1]
        sequence_ptr,  # int32 [C]; -1: nothing to do
        chunk_ptr,  # int32 [1]: tiles of one item
        partial_ptr,  # fp32 [C, K, R, D], out
        lse_ptr,  # fp32 [C, K, R], out
        out_ptr,  # [T, H, D], out
        q_stride,
        out_stride,
        table_stride,
        block_stride,
        value_offset,
        head_stride,
        group,  # G
        window,  # a number over every context: none
        scale_log2,
        block_shift,  # log2(B)
        num_rows,  # R
        HEAD_DIM: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_M: tl.constexpr,
        BLOCK_N: tl.constexpr,
        GATHER: tl.constexpr,
        UPCAST: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        """Grid (C, K): program (c, k) attends a run of one sequence's keys, for all query heads of KV head k.

        The only item of a sequence writes the output itself; others write a partial result and its log-sum-exp.
        """
        item = tl.program_id(0)
        head = tl.program_id(1)
        sequence = tl.load(sequence_ptr + item)
        if sequence < 0:
            return
        first_row = tl.load(cu_ptr + sequence)
        num_queries = tl.load(cu_ptr + sequence + 1) - first_row
        context = tl.load(context_ptr + sequence)
        first_item = tl.load(first_item_ptr + sequence)
        num_items = tl.load(first_item_ptr + sequence + 1) - first_item
        chunk = tl.load(chunk_ptr)
        low = tl.maximum(context - num_queries + 1 - window, 0)
        tile = low // BLOCK_N + (item - first_item) * chunk
        end_tile = tl.minimum(tile + chunk, tl.cdiv(context, BLOCK_N))

        row = tl.arange(0, BLOCK_M)
        dim = tl.arange(0, BLOCK_D)
        query = row // group
        position = context - num_queries + query
        q_head = head * group + row % group
        used = (query < num_queries)[:, None] & (dim < HEAD_DIM)[None, :]
        token = (first_row + query).to(tl.int64)
        q_at = token * q_stride + q_head * HEAD_DIM
        q = tl.load(q_ptr + q_at[:, None] + dim[None, :], mask=used, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], FLOOR, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        table_ptr += sequence.to(tl.int64) * table_stride
        kv_ptr += head * head_stride
        page = load_pages(table_ptr, tile, low, context, block_shift, BLOCK_N, GATHER)
        for at in range(tile, end_tile):
            next_page = load_pages(table_ptr, at + 1, low, context, block_shift, BLOCK_N, GATHER)
            acc, peak, total = attend_tile(
                q,
                acc,
                peak,
                total,
                page,
                position,
                kv_ptr,
                value_offset,
                block_stride,
                at,
                low,
                context,
                window,
                scale_log2,
                block_shift,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_N,
                GATHER,
                True,
                True,
                UPCAST,
                PRECISION,
            )
            page = next_page
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        if num_items == 1:
            out_at = token * out_stride + q_head * HEAD_DIM
            tl.store(out_ptr + out_at[:, None] + dim[None, :], acc.to(out_ptr.dtype.element_ty), mask=used)
        else:
            slot = (item.to(tl.int64) * tl.num_programs(1) + head) * num_rows + row
            tl.store(partial_ptr + (slot * HEAD_DIM)[:, None] + dim[None, :], acc, mask=used)
            lse = tl.where(total > 0, peak + tl.math.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
            tl.store(lse_ptr + slot, lse, mask=query < num_queries)
