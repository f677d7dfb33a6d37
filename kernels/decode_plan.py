"""Decides on the device which program of the decode kernel reads which keys: a work-list of constant size.

One chunk length serves the whole batch, found from the sum of all visible keys and from how many programs fill the GPU,
not from the batch size alone; so a long sequence among short ones is cut, and a batch that fills the GPU is not. The
list is made by a kernel from lengths on the device: nothing is copied to the host, and a CUDA graph that was captured
once serves every step of its batch size.

Knows lengths only; shape letters are those of decode_attention.py.
"""

from dataclasses import dataclass

import torch

from twinpool.kernels.paged_kv import ALIGNMENT, NO_WINDOW, power_of_two
from twinpool.kernels.tiles import Tiles

try:
    import triton
    import triton.language as tl
except ImportError:  # triton is optional: CPUs never need it
    triton = None

PROGRAMS_PER_SM = 2
MOST_SPLITS = 64
LEAST_CHUNK_KEYS = 256  # shorter ones cost more in merging than they hide
MOST_SEQUENCES = 4096  # one program plans them all
LEAST_LANES = 64


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Device memory of one work-list and its partial results; made once for each batch size and window, filled anew
    each step by ``plan_decode``. Idle items have sequence -1."""

    num_kv_heads: int
    most_queries: int  # of one sequence; those with more are left to the prefill kernel
    block_n: int
    window: int  # NO_WINDOW: none
    target_items: int
    most_splits: int
    first_items: torch.Tensor  # int32 [S + 1]: sequence s has items [first_items[s], first_items[s + 1])
    sequences: torch.Tensor  # int32 [C]
    chunk: torch.Tensor  # int32 [1]: tiles of one item
    partials: torch.Tensor  # float32 [C, K, R, D]; read where a sequence has several items only
    lses: torch.Tensor  # float32 [C, K, R], base 2

    def check(
        self, num_sequences: int, num_heads: int, num_kv_heads: int, head_dim: int, tiles: Tiles, device: torch.device
    ) -> None:
        """Refuse a batch that this plan was not made for.

        Raises:
            ValueError: a size differs.
        """
        rows = self.most_queries * num_heads // num_kv_heads
        asked = (num_sequences + 1, num_kv_heads, rows, head_dim, tiles.block_n, device)
        made = (*self.first_items.shape, *self.partials.shape[1:], self.block_n, self.chunk.device)
        if asked != made:
            raise ValueError(f"the plan was made for (S + 1, K, R, D, block_n, device) {made}, not {asked}")
        if rows > tiles.block_m:
            raise ValueError(f"{rows} rows do not fit tiles of {tiles.block_m}")


def make_decode_plan(
    num_sequences: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    tiles: Tiles,
    num_sms: int,
    device: torch.device,
    *,
    window: int | None = None,
    most_queries: int = 1,
    most_splits: int = MOST_SPLITS,
) -> DecodePlan:
    """Allocate a plan for batches of ``num_sequences`` places.

    Args:
        num_sms: multiprocessors (compute units) that are to be kept busy.
        most_queries: new tokens of one sequence, at most; with G heads each they must fit ``tiles``.
        most_splits: 1: never cut a sequence; nothing is merged then.

    Raises:
        ValueError: a number is out of range. Nothing was allocated.
    """
    rows = most_queries * num_heads // num_kv_heads
    if not 0 <= num_sequences <= MOST_SEQUENCES:
        raise ValueError(f"{num_sequences} sequences: a plan holds 0 to {MOST_SEQUENCES}")
    if not 1 <= rows <= tiles.block_m:
        raise ValueError(f"{most_queries} queries are {rows} rows: 1 to {tiles.block_m} are wanted")
    if num_sms < 1 or not 1 <= most_splits <= MOST_SPLITS or (window is not None and window < 1):
        raise ValueError(f"{num_sms} SMs, {most_splits} splits, window {window}: out of range")
    target_items = max(num_sms * PROGRAMS_PER_SM // num_kv_heads, 1)
    # Chunks of ceil(all / target) keys: at most target of them, and one more for each sequence's rest.
    capacity = num_sequences if most_splits == 1 else target_items + num_sequences
    return DecodePlan(
        num_kv_heads,
        most_queries,
        tiles.block_n,
        NO_WINDOW if window is None else min(window, NO_WINDOW),
        target_items,
        most_splits,
        torch.zeros(num_sequences + 1, dtype=torch.int32, device=device),
        torch.full((capacity,), -1, dtype=torch.int32, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.empty((capacity, num_kv_heads, rows, head_dim), dtype=torch.float32, device=device),
        torch.empty((capacity, num_kv_heads, rows), dtype=torch.float32, device=device),
    )


def plan_decode(plan: DecodePlan, cu_seqlens: torch.Tensor, context_S: torch.Tensor) -> None:
    """Fill the plan's work-list on the current stream; lengths as in ``decode_attention``.

    Raises:
        ValueError: lengths are not what the plan was made for. Nothing was launched.
    """
    num_sequences = len(plan.first_items) - 1
    if context_S.shape != (num_sequences,) or cu_seqlens.shape != (num_sequences + 1,):
        raise ValueError(f"the plan was made for {num_sequences} sequences, not {len(context_S)}")
    for tensor in (cu_seqlens, context_S):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous() or tensor.device != plan.chunk.device:
            raise ValueError(f"lengths must be int32, contiguous and on {plan.chunk.device}")
        if tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"the address of lengths is no multiple of {ALIGNMENT}")
    if not num_sequences:
        return
    _plan_decode_kernel[(1,)](
        cu_seqlens,
        context_S,
        plan.first_items,
        plan.sequences,
        plan.chunk,
        num_sequences,
        len(plan.sequences),
        plan.target_items,
        plan.most_splits,
        plan.most_queries,
        plan.window,
        plan.block_n,
        -(-LEAST_CHUNK_KEYS // plan.block_n),
        LANES=max(power_of_two(num_sequences), LEAST_LANES),
    )


def plan_decode_reference(
    plan: DecodePlan, cu_seqlens: torch.Tensor, context_S: torch.Tensor
) -> tuple[list[int], list[int], int]:
    """What the kernel means: the plan's ``first_items``, ``sequences`` and ``chunk`` as numbers."""
    tiles = []
    for first, end, context in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], context_S.tolist(), strict=False):
        low = max(context - (end - first) + 1 - plan.window, 0)
        short = 0 < end - first <= plan.most_queries
        tiles.append(max(-(-context // plan.block_n) - low // plan.block_n, 0) if short else 0)
    least = -(-LEAST_CHUNK_KEYS // plan.block_n)
    chunk = max(-(-sum(tiles) // plan.target_items), -(-max(tiles) // plan.most_splits), least)
    chunk = max(*tiles, 1) if plan.most_splits == 1 else chunk
    splits = [-(-count // max(chunk, 1)) for count in tiles]
    sequences = [sequence for sequence, count in enumerate(splits) for _ in range(count)]
    first_items = [sum(splits[:sequence]) for sequence in range(len(splits) + 1)]
    return first_items, sequences + [-1] * (len(plan.sequences) - len(sequences)), chunk


if triton is not None:
    UNSPECIALISED = ("num_sequences", "capacity", "target_items", "most_splits", "most_queries", "window")

    @triton.jit(do_not_specialize=(*UNSPECIALISED, "block_n", "least_chunk"))
    def _plan_decode_kernel(  # type: ignore[no-untyped-def]
        cu_ptr,  # int32 [S + 1]
        context_ptr,  # int32 [S]
        first_item_ptr,  # int32 [S + 1], out
        sequence_ptr,  # int32 [C], out
        chunk_ptr,  # int32 [1], out
        num_sequences,  # S
        capacity,  # C
        target_items,
        most_splits,
        most_queries,
        window,
        block_n,
        least_chunk,
        LANES: tl.constexpr,
    ):
        """Grid (1,): one program, a lane for each sequence."""
        lane = tl.arange(0, LANES)
        real = lane < num_sequences
        num_queries = tl.load(cu_ptr + lane + 1, mask=real, other=0) - tl.load(cu_ptr + lane, mask=real, other=0)
        context = tl.load(context_ptr + lane, mask=real, other=0)
        low = tl.maximum(context - num_queries + 1 - window, 0)
        tiles = tl.maximum((context + block_n - 1) // block_n - low // block_n, 0)
        tiles = tl.where((num_queries > 0) & (num_queries <= most_queries), tiles, 0)
        longest = tl.max(tiles, 0)
        chunk = (tl.sum(tiles, 0) + target_items - 1) // target_items
        chunk = tl.maximum(chunk, (longest + most_splits - 1) // most_splits)
        chunk = tl.maximum(chunk, least_chunk)
        chunk = tl.where(most_splits == 1, tl.maximum(longest, 1), chunk)
        splits = (tiles + chunk - 1) // chunk
        end = tl.cumsum(splits, 0)
        first = end - splits
        tl.store(chunk_ptr, chunk)
        tl.store(first_item_ptr, 0)
        tl.store(first_item_ptr + 1 + lane, end, mask=real)
        for split in range(0, tl.max(splits, 0)):
            tl.store(sequence_ptr + first + split, lane, mask=real & (split < splits))
        used = tl.sum(splits, 0)
        for start in range(used, capacity, LANES):
            tl.store(sequence_ptr + start + lane, -1, mask=start + lane < capacity)
