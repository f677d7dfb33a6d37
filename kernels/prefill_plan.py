"""Cuts the long runs of new tokens of a batch into tiles of queries, longest first, for the prefill kernel.

Made on the host, from lengths that the scheduler knows anyway, and sent with the step's other lists: prefill is not
captured in graphs. Longest first because causality makes later tiles of a run the longer ones, and a long tile that
starts last is what the GPU then waits for. Knows lengths only; shape letters are those of prefill_attention.py.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


def plan_prefill(
    new_tokens_S: Ints, context_S: Ints, *, group: int, block_m: int, most_short: int, window: int | None = None
) -> Ints:
    """Which tile attends which queries.

    Args:
        new_tokens_S: of each sequence.
        context_S: tokens after the step, the new ones among them.
        group: query heads of one KV head; a tile holds ``block_m // group`` queries.
        most_short: sequences with at most so many new tokens are the decode kernel's, and get no tile.
        window: keys that a query sees, itself among them; None: all before it.

    Returns:
        ``[C, 2]``: sequence, and its first query of the tile counted from its first new token. Tiles that see more keys
        come first; ties in the order of the batch.

    Raises:
        ValueError: lengths do not belong together, or a number is out of range.
    """
    if new_tokens_S.shape != context_S.shape or new_tokens_S.ndim != 1:
        raise ValueError(f"{new_tokens_S.shape} new tokens and {context_S.shape} contexts do not belong together")
    if (new_tokens_S < 0).any() or (context_S < new_tokens_S).any():
        raise ValueError("a sequence has fewer than no new tokens, or more of them than context")
    if not 1 <= group <= block_m or most_short < 0 or (window is not None and window < 1):
        raise ValueError(f"group {group} in tiles of {block_m}, {most_short} short, window {window}: out of range")
    per_tile = block_m // group
    counts = np.where(new_tokens_S > most_short, -(-new_tokens_S // per_tile), 0)
    sequence_C = np.repeat(np.arange(len(counts)), counts)
    tile_C = np.arange(len(sequence_C)) - np.repeat(np.cumsum(counts) - counts, counts)
    first_query_C = tile_C * per_tile
    first_position_C = (context_S - new_tokens_S)[sequence_C] + first_query_C
    seen_C = np.minimum(first_position_C + per_tile, context_S[sequence_C])
    if window is not None:
        seen_C = seen_C - np.maximum(first_position_C + 1 - window, 0)
    order = np.argsort(-seen_C, kind="stable")
    return np.stack((sequence_C, first_query_C), axis=1)[order].astype(np.int32)
