"""Says how probable a model found tokens: natural log-softmax of its raw logits, in float32.

Knows no sampling: temperature, bias and penalties do not change what the model itself found.

Shape letters: R rows, V vocabulary, N candidates for the top.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from twinpool.core.sampling import TokenLogprobs

SLICE_ROWS = 64  # rows of float32 logits that one slice holds, whatever is asked


@dataclass(frozen=True, slots=True)
class Wanted:
    """One token whose probability is asked for, by the logits of one row, with ``num_top`` alternatives."""

    row: int
    token_id: int
    num_top: int


def logprobs_in_slices(
    wanted: Sequence[Wanted], make_logits: Callable[[torch.Tensor], torch.Tensor]
) -> list[TokenLogprobs]:
    """Score any number of tokens with the memory of ``SLICE_ROWS`` rows of logits.

    Args:
        make_logits: gives float32 ``[R, V]`` for int64 row numbers ``[R]``; called once for each slice, in order.
    """
    found: list[TokenLogprobs] = []
    for first in range(0, len(wanted), SLICE_ROWS):
        part = wanted[first : first + SLICE_ROWS]
        logits_RV = make_logits(torch.tensor([one.row for one in part]))
        found += token_logprobs(logits_RV, [one.token_id for one in part], [one.num_top for one in part])
    return found


def token_logprobs(logits_RV: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Score one token in each row, and name the row's ``num_top`` most probable ids: the lower first among equals.

    A row's result is a function of that row alone; where one logit is NaN or +inf, the token's logprob is NaN.

    Args:
        logits_RV: float32; not changed.
        token_ids: R ids, each in ``[0, V)``.
        num_top: R counts; where one is over V, all ids are named.
    """
    logprobs_RV = logits_RV.log_softmax(dim=-1)
    own_R1 = torch.tensor(token_ids, device=logits_RV.device)[:, None]
    own = logprobs_RV.gather(1, own_R1)[:, 0].tolist()
    tops = _tops(logits_RV, logprobs_RV, num_top)
    return [TokenLogprobs(*row) for row in zip(token_ids, own, tops, strict=True)]


def _tops(
    logits_RV: torch.Tensor, logprobs_RV: torch.Tensor, num_top: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    """Each row's best ids with their logprobs; by logits, which are apart where logprobs may be rounded together."""
    vocabulary = logits_RV.shape[1]
    counts = [min(count, vocabulary) for count in num_top]
    most = max(counts, default=0)
    if most == 0:
        return [()] * len(counts)
    last_R1 = torch.tensor(counts, device=logits_RV.device).sub_(1).clamp_min_(0)[:, None]
    threshold_R1 = logits_RV.topk(most, dim=-1).values.gather(1, last_R1)
    row_N, token_N = torch.nonzero(logits_RV >= threshold_R1, as_tuple=True)  # in order of row, then id
    logits_N, logprobs_N = logits_RV[row_N, token_N].cpu().numpy(), logprobs_RV[row_N, token_N].cpu().numpy()
    rows, tokens = row_N.cpu().numpy(), token_N.cpu().numpy()
    order = np.lexsort((tokens, -logits_N, rows))
    numbers = np.arange(len(counts))
    starts, ends = np.searchsorted(rows, numbers), np.searchsorted(rows, numbers, side="right")  # NaN rows have none
    best = [order[first:end][:count] for first, end, count in zip(starts, ends, counts, strict=True)]
    return [tuple(zip(tokens[at].tolist(), logprobs_N[at].tolist(), strict=True)) for at in best]
