"""Which prompts a worker computes in its next step, and how many tokens of each.

Pure. Knows counts, not tensors, peers or clocks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.model.step import Chunk, StepPlan, Wait


@dataclass(frozen=True, slots=True)
class PrefillView:
    """Prompts not fully computed, first served first; N rows.

    ``may_park`` rows have no grant from a decode worker yet, so that their KV may have to stay here once computed.
    """

    remaining_tokens: NDArray[np.int64]  # [N] to compute, at least 1
    need_blocks: NDArray[np.int64]  # [N] to allocate before the first chunk; 0: it holds its blocks already
    may_park: NDArray[np.bool_]  # [N]
    token_budget: int  # tokens this step may compute
    spare_blocks: int  # free, and above the forecast of running sequences
    parked_blocks: int  # parked, or being computed without a grant
    parked_limit: int


def decide(view: PrefillView, now: float) -> StepPlan:  # noqa: ARG001 - the signature all batching policies share
    """Fill the token budget in order of the rows, chunking the last prompt that does not fit (Sarathi-Serve, OSDI'24).

    A prompt starts only when its blocks are there. None that needs blocks overtakes one that waits for them, so that
    long prompts do not starve; those that hold theirs go on, so that what they hold comes back. Parked KV is bounded
    before it arises: rows without a grant start only while all that may be parked stays under the limit, or when
    nothing is parked at all.
    """
    chunks: list[Chunk] = []
    wait = Wait.NOTHING
    budget, spare, parked = view.token_budget, view.spare_blocks, view.parked_blocks
    columns = (view.remaining_tokens.tolist(), view.need_blocks.tolist(), view.may_park.tolist())
    for row, (remaining, need, may_park) in enumerate(zip(*columns, strict=True)):
        if budget <= 0:
            break
        if need:
            wait = wait or _reason_to_wait(view, need, spare, parked if may_park else 0)
            if wait:
                continue
            spare -= need
            parked += need if may_park else 0
        num_tokens = min(budget, remaining)
        chunks.append(Chunk(row, num_tokens))
        budget -= num_tokens
    return StepPlan(chunks=tuple(chunks), wait=wait)


def token_budget(chunk_tokens: int, num_decoding: int, block_tokens: int) -> int:
    """Prompt tokens that a step may compute beside ``num_decoding`` sequences: what they leave of ``chunk_tokens``, but
    never less than a block's, so that prompts go on."""
    return max(block_tokens, chunk_tokens - num_decoding)


def spare_blocks(free_blocks: int, total_blocks: int, promised_blocks: int, demoted_blocks: int) -> int:
    """Blocks that prompts may start in: free ones that nobody was promised, and none while decoding asks for some back.

    Args:
        promised_blocks: the peak of what decodes here, and what sends and parked KV hold.
        demoted_blocks: that decoding asked others to give up in this step.
    """
    return 0 if demoted_blocks else min(free_blocks, total_blocks - promised_blocks)


def _reason_to_wait(view: PrefillView, need: int, spare: int, parked: int) -> Wait:
    """Why a prompt does not start beside ``parked`` blocks, which are none to one that will not be parked."""
    if need > spare:
        return Wait.PREFILL_BLOCKS
    if parked and parked + need > view.parked_limit:
        return Wait.PREFILL_PARKED
    return Wait.NOTHING
