"""Causal attention of long runs of new tokens over paged KV, what was cached before them included.

Knows no model and no request; which program attends which queries is prefill_plan.py's. Scheme: FlashAttention-2 (Dao
2023), with the query heads of one KV head packed into a tile, and keys that no row of a tile may not see kept apart
from those at the diagonal, so that most of the work compares nothing.

Shape letters: T query tokens of the step, S sequences, H query heads, K key/value heads, G = H / K, D head size, B
tokens in a block, M columns of the block table, C tiles of queries.
"""

import math

import torch

from twinpool.kernels.paged_kv import ALIGNMENT, NO_WINDOW, check_batch, check_layer, power_of_two, row_stride
from twinpool.kernels.tiles import Tiles, interpreting

try:
    import triton
    import triton.language as tl

    from twinpool.kernels.paged_flash import FLOOR, attend_tile, load_pages
except ImportError:  # triton is optional: CPUs never need it
    triton = None

# Values of these must not make another variant; strides of q, out and KV are multiples of 16 always.
UNSPECIALISED = ("table_stride", "num_kv_heads", "group", "window", "scale_log2", "block_shift")


def prefill_attention(
    q_THD: torch.Tensor,
    kv_N2KBD: torch.Tensor,
    table_SM: torch.Tensor,
    cu_seqlens: torch.Tensor,
    context_S: torch.Tensor,
    tiles_C2: torch.Tensor,
    tiles: Tiles,
    out_THD: torch.Tensor,
    window: int | None = None,
) -> None:
    """Causal attention of the sequences that ``tiles_C2`` names, scaled by ``D ** -0.5``, on the current stream.

    The query at position p sees the keys in (p - window, p]. Rows of other sequences are left as they are.

    Args:
        q_THD: fp16, bf16 or fp32; strides (any multiple of 16, D, 1).
        kv_N2KBD: one layer of the pool, ``pool[:, layer]``; q's dtype; contiguous from K on. The step's keys and values
            are in it.
        table_SM: int32 block ids; what lies past a sequence's context is not read.
        cu_seqlens: int32 ``[S + 1]``: sequence s owns rows ``[cu_seqlens[s], cu_seqlens[s + 1])``.
        context_S: int32 tokens of each sequence, the new ones among them.
        tiles_C2: int32, contiguous, of ``plan_prefill`` for ``tiles.block_m`` and this window. Its numbers are not
            checked.
        tiles: of ``choose_prefill_tiles`` for this device.
        out_THD: like q. The rows named above are overwritten.

    Raises:
        ValueError: a shape, stride, dtype or device above does not hold. Nothing was launched.
    """
    check_layer(q_THD, kv_N2KBD, out_THD)
    check_batch(q_THD, table_SM, cu_seqlens, context_S)
    _check_tiles(tiles_C2, q_THD)
    if window is not None and window < 1:
        raise ValueError(f"window {window}: at least one key is wanted")
    if not len(tiles_C2):
        return
    num_heads, head_dim = q_THD.shape[1:]
    _, _, num_kv_heads, block_tokens, _ = kv_N2KBD.shape
    _prefill_attention_kernel[(len(tiles_C2) * num_kv_heads,)](
        q_THD,
        kv_N2KBD,
        table_SM,
        cu_seqlens,
        context_S,
        tiles_C2,
        out_THD,
        row_stride(q_THD),
        row_stride(out_THD),
        table_SM.stride(0),
        kv_N2KBD.stride(0),
        num_kv_heads * block_tokens * head_dim,
        block_tokens * head_dim,
        num_kv_heads,
        num_heads // num_kv_heads,
        NO_WINDOW if window is None else min(window, NO_WINDOW),
        math.log2(math.e) * head_dim**-0.5,
        block_tokens.bit_length() - 1,
        HEAD_DIM=head_dim,
        BLOCK_D=power_of_two(head_dim),
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        GATHER=block_tokens < tiles.block_n,
        WINDOW=window is not None,
        UPCAST=interpreting(),
        PRECISION=tiles.precision,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def _check_tiles(tiles_C2: torch.Tensor, q_THD: torch.Tensor) -> None:
    if tiles_C2.dim() != 2 or tiles_C2.shape[1] != 2 or not tiles_C2.is_contiguous():
        raise ValueError(f"tiles {tuple(tiles_C2.shape)} must be [C, 2], contiguous")
    if tiles_C2.data_ptr() % ALIGNMENT:
        raise ValueError(f"the address of tiles is no multiple of {ALIGNMENT}")
    if tiles_C2.dtype != torch.int32 or tiles_C2.device != q_THD.device:
        raise ValueError(f"tiles are {tiles_C2.dtype} on {tiles_C2.device}: int32 on {q_THD.device} is wanted")


if triton is not None:

    @triton.jit(do_not_specialize=UNSPECIALISED)
    def _prefill_attention_kernel(  # type: ignore[no-untyped-def]
        q_ptr,  # [T, H, D]
        kv_ptr,  # [N, 2, K, B, D]
        table_ptr,  # int32 [S, M]
        cu_ptr,  # int32 [S + 1]
        context_ptr,  # int32 [S]
        tiles_ptr,  # int32 [C, 2]: sequence, first query
        out_ptr,  # [T, H, D], out
        q_stride,
        out_stride,
        table_stride,
        block_stride,
        value_offset,
        head_stride,
        num_kv_heads,  # K
        group,  # G
        window,
        scale_log2,
        block_shift,  # log2(B)
        HEAD_DIM: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_M: tl.constexpr,
        BLOCK_N: tl.constexpr,
        GATHER: tl.constexpr,
        WINDOW: tl.constexpr,
        UPCAST: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        """Grid (C * K,): program c * K + k attends the queries of tile c, with all query heads of KV head k.

        Heads vary fastest, so that tiles start in the order of the list.
        """
        head = tl.program_id(0) % num_kv_heads
        item = tl.program_id(0) // num_kv_heads
        sequence = tl.load(tiles_ptr + 2 * item)
        first_query = tl.load(tiles_ptr + 2 * item + 1)
        first_row = tl.load(cu_ptr + sequence)
        num_queries = tl.load(cu_ptr + sequence + 1) - first_row
        context = tl.load(context_ptr + sequence)
        per_tile = BLOCK_M // group
        first_position = context - num_queries + first_query
        end = tl.minimum(first_position + per_tile, context)  # of the keys that any row sees

        row = tl.arange(0, BLOCK_M)
        dim = tl.arange(0, BLOCK_D)
        query = first_query + row // group
        position = first_position + row // group
        q_head = head * group + row % group
        used = ((row < per_tile * group) & (query < num_queries))[:, None] & (dim < HEAD_DIM)[None, :]
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

        low = 0
        full_tile = 0  # tiles before it have keys that lie outside the last row's window
        if WINDOW:
            low = tl.maximum(first_position + 1 - window, 0)
            full_tile = tl.cdiv(tl.maximum(end - window, 0), BLOCK_N)
        end_tile = tl.cdiv(end, BLOCK_N)
        tile = low // BLOCK_N
        for part in tl.static_range(0 if WINDOW else 1, 3):  # at the window's edge; seen by every row; at the diagonal
            if part == 0:
                stop = tl.minimum(full_tile, end_tile)
            elif part == 1:
                stop = tl.maximum(tile, (first_position + 1) // BLOCK_N)
            else:
                stop = end_tile
            page = load_pages(table_ptr, tile, low, end, block_shift, BLOCK_N, GATHER)
            for at in range(tile, stop):
                next_page = load_pages(table_ptr, at + 1, low, end, block_shift, BLOCK_N, GATHER)
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
                    end,
                    window,
                    scale_log2,
                    block_shift,
                    HEAD_DIM,
                    BLOCK_D,
                    BLOCK_N,
                    GATHER,
                    part != 1,
                    WINDOW,
                    UPCAST,
                    PRECISION,
                )
                page = next_page
            tile = stop
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        out_at = token * out_stride + q_head * HEAD_DIM
        tl.store(out_ptr + out_at[:, None] + dim[None, :], acc.to(out_ptr.dtype.element_ty), mask=used)
