"""Which sequences a worker decodes in its next step, and which handoffs it makes room for.

Pure. Knows counts, not tensors, peers or clocks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.model.step import StepPlan, Wait


@dataclass(frozen=True, slots=True)
class DecodeView:
    """Sequences decoding (N rows, oldest first) and handoffs that want blocks (M rows, oldest first).

    ``context_tokens`` counts tokens whose KV is stored; each decode step adds one. ``remaining_tokens`` is how many
    more may be stored. Handoffs already granted count among the N, not ready.
    """

    context_tokens: NDArray[np.int64]  # [N]
    remaining_tokens: NDArray[np.int64]  # [N]
    held_blocks: NDArray[np.int64]  # [N]
    is_ready: NDArray[np.bool_]  # [N] False: its KV is still arriving, or being computed here
    wanted_tokens: NDArray[np.int64]  # [M] tokens of KV to receive
    wanted_remaining: NDArray[np.int64]  # [M]
    block_tokens: int
    total_blocks: int
    free_blocks: int
    busy_blocks: int  # held by prompts being computed for others, and by sends under way: they come back by themselves
    max_running: int


def decide(view: DecodeView, now: float) -> StepPlan:  # noqa: ARG001 - the signature all batching policies share
    """Decode every ready sequence that has a block for its next token; grant handoffs in order while all will fit.

    Grants are always the first so many rows. Parked KV never stands in the way: what is missing is asked for as
    ``demote_blocks``. Rows without a block sit out, youngest first, until the demotion has happened.
    """
    rows, missing = _rows_with_blocks(view)
    grants, wait = _grants(view)
    needed = int(_blocks(view.wanted_tokens[: len(grants)], view.block_tokens).sum())
    demote = max(0, missing + needed - max(0, view.free_blocks - _new_blocks(view, rows)))
    if missing:
        wait = Wait.DECODE_BLOCKS
    repeat = int(view.remaining_tokens[list(rows)].min()) if rows and not grants and wait == Wait.NOTHING else 1
    return StepPlan(decode_rows=rows, grants=grants, demote_blocks=demote, repeat=max(1, repeat), wait=wait)


def forecast_peak_blocks(view: DecodeView) -> int:
    """The most blocks that the N rows can hold at once, if each runs to its limit.

    Ready rows go on together, one token a step, so their usage peaks just before one of them ends: only those moments
    are looked at (the idea of Past-Future, ASPLOS'25, with limits in place of predicted lengths). Nobody knows when a
    row that is not ready will begin, so it counts with all it may ever hold. Exact for the first, safe for the second.
    """
    ready = view.is_ready
    waiting = _blocks((view.context_tokens + view.remaining_tokens)[~ready], view.block_tokens)
    context, remaining = view.context_tokens[ready], view.remaining_tokens[ready]
    if not len(context):
        return int(waiting.sum())
    ends = np.unique(remaining)
    alive = remaining[None, :] >= ends[:, None]
    held = _blocks(context[None, :] + ends[:, None], view.block_tokens)
    return int((alive * held).sum(axis=1).max() + waiting.sum())


def _blocks(tokens: NDArray[np.int64], block_tokens: int) -> NDArray[np.int64]:
    return -(-tokens // block_tokens)


def _rows_with_blocks(view: DecodeView) -> tuple[tuple[int, ...], int]:
    ready = np.flatnonzero(view.is_ready)[: view.max_running]
    needs = view.context_tokens[ready] >= view.held_blocks[ready] * view.block_tokens
    fits = np.cumsum(needs) <= view.free_blocks
    chosen = ready[fits | ~needs]
    return tuple(int(row) for row in chosen), int((needs & ~fits).sum())


def _new_blocks(view: DecodeView, rows: tuple[int, ...]) -> int:
    chosen = list(rows)
    return int((view.context_tokens[chosen] >= view.held_blocks[chosen] * view.block_tokens).sum())


def _grants(view: DecodeView) -> tuple[tuple[int, ...], Wait]:
    peak = forecast_peak_blocks(view) + view.busy_blocks
    needs = _blocks(view.wanted_tokens + view.wanted_remaining, view.block_tokens)
    for row, need in enumerate(needs.tolist()):
        if len(view.context_tokens) + row >= view.max_running:
            return tuple(range(row)), Wait.GRANT_SEQUENCES
        peak += need
        if peak > view.total_blocks:
            return tuple(range(row)), Wait.GRANT_BLOCKS
    return tuple(range(len(needs))), Wait.NOTHING
