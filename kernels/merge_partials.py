"""Merges the partial attention of several runs of keys into a sequence's output, by their log-sum-exp.

Knows which items are whose from the plan; knows no keys. The merge is associative (Milakov and Gimelshein 2018), so any
number of runs, of any origin, may be merged. Shape letters are those of decode_attention.py.
"""

import torch

from twinpool.kernels.decode_plan import DecodePlan
from twinpool.kernels.paged_kv import power_of_two, row_stride

try:
    import triton
    import triton.language as tl

    from twinpool.kernels.paged_flash import FLOOR
except ImportError:  # triton is optional: CPUs never need it
    triton = None


def runs_at_once(head_dim: int) -> int:
    """How many partial results a program holds; more of wide heads spill on sm_80."""
    return 16 if head_dim <= 128 else 8


def merge_partials(plan: DecodePlan, cu_seqlens: torch.Tensor, out_THD: torch.Tensor) -> None:
    """Write the output rows of each sequence that has several items, on the current stream.

    Args: as of ``decode_attention``, which checked them.
    """
    if plan.most_splits == 1:
        return
    _, num_heads, head_dim = out_THD.shape
    num_sequences = len(plan.first_items) - 1
    _merge_partials_kernel[(num_sequences * plan.most_queries, num_heads)](
        plan.partials,
        plan.lses,
        plan.first_items,
        cu_seqlens,
        out_THD,
        row_stride(out_THD),
        num_heads // plan.num_kv_heads,
        plan.most_queries,
        HEAD_DIM=head_dim,
        BLOCK_D=power_of_two(head_dim),
        RUNS=runs_at_once(head_dim),
    )


def merge_partials_reference(partial_CKRD: torch.Tensor, lse_CKR: torch.Tensor) -> torch.Tensor:
    """What the kernel means for the C items of one sequence: ``[K, R, D]``."""
    weight_CKR = (lse_CKR - lse_CKR.amax(0)).exp2()
    weighted_CKRD = torch.where(weight_CKR[..., None] > 0, partial_CKRD * weight_CKR[..., None], 0)
    return weighted_CKRD.sum(0) / weight_CKR.sum(0)[..., None]


if triton is not None:

    @triton.jit(do_not_specialize=("group", "most_queries"))
    def _merge_partials_kernel(  # type: ignore[no-untyped-def]
        partial_ptr,  # fp32 [C, K, R, D]
        lse_ptr,  # fp32 [C, K, R], base 2
        first_item_ptr,  # int32 [S + 1]
        cu_ptr,  # int32 [S + 1]
        out_ptr,  # [T, H, D], out
        out_stride,
        group,  # G
        most_queries,  # R / G
        HEAD_DIM: tl.constexpr,
        BLOCK_D: tl.constexpr,
        RUNS: tl.constexpr,
    ):
        """Grid (S * most_queries, H): program (s, i; h) merges what was computed of sequence s's query i and head h."""
        sequence = tl.program_id(0) // most_queries
        query = tl.program_id(0) % most_queries
        head = tl.program_id(1)
        first_item = tl.load(first_item_ptr + sequence)
        end_item = tl.load(first_item_ptr + sequence + 1)
        first_row = tl.load(cu_ptr + sequence)
        if (end_item - first_item < 2) | (query >= tl.load(cu_ptr + sequence + 1) - first_row):
            return
        num_rows = group * most_queries
        num_kv_heads = tl.num_programs(1) // group
        within = (head // group).to(tl.int64) * num_rows + query * group + head % group
        dim = tl.arange(0, BLOCK_D)
        peak = FLOOR
        total = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        for start in range(first_item, end_item, RUNS):
            item = start + tl.arange(0, RUNS)
            slot = item.to(tl.int64) * num_kv_heads * num_rows + within
            lse = tl.load(lse_ptr + slot, mask=item < end_item, other=float("-inf"))
            new_peak = tl.maximum(peak, tl.max(lse, 0))
            weight = tl.math.exp2(lse - new_peak)
            shrink = tl.math.exp2(peak - new_peak)
            used = (weight > 0)[:, None] & (dim < HEAD_DIM)[None, :]
            partial = tl.load(partial_ptr + (slot * HEAD_DIM)[:, None] + dim[None, :], mask=used, other=0.0)
            acc = acc * shrink + tl.sum(partial * weight[:, None], 0)
            total = total * shrink + tl.sum(weight, 0)
            peak = new_peak
        out_at = (first_row + query).to(tl.int64) * out_stride + head * HEAD_DIM + dim
        tl.store(out_ptr + out_at, (acc / total).to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM)
