"""Chooses tokens from logits, row by row independently: a function of (logits, parameters, seed, index, choice) only.

Knows no batch, no request and no state: whoever has a sequence's tokens and seed can go on from any index.

Shape letters: R rows, C of them with changed logits, D drawn from, S in a slice; V vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from twinpool.core.sampling import TokenLogprobs
from twinpool.kernels.noise import GUMBEL_MAX, GUMBEL_MIN, gumbel_noise
from twinpool.model.batch import NO_TOKEN, SampleRow
from twinpool.model.logits import change_logits, changes_logits
from twinpool.model.logprobs import Wanted, logprobs_in_slices

_LEAST_TEMPERATURE = 1e-30  # float32 can divide by it


def sample(logits_RV: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """Choose one token for each row.

    First the logits are changed as the row asks (see model/logits.py). Temperature 0 then takes the largest, the lowest
    id among equals. Otherwise top-k, top-p on what top-k left (renormalised) and min-p follow the temperature, in
    transformers' order; ids that tie with the k-th stay. One of the rest is drawn by Gumbel-max (Gumbel 1954; Maddison
    et al. 2014), its noise a function of (seed, index, choice, id).

    Args:
        logits_RV: float32, contiguous; not changed.
        rows: R of them. ``sampling.seed`` is set where the temperature is over 0.

    Returns:
        int64 ``[R]``, on the logits' device; ``NO_TOKEN`` where a logit is NaN or +inf, or all are -inf or forbidden.
    """
    best_R, ids_R = logits_RV.max(dim=-1)
    changed = [r for r, row in enumerate(rows) if changes_logits(row)]
    changed_CV = logits_RV[changed]
    if changed:
        change_logits(changed_CV, [rows[r] for r in changed])
        best_R[changed], ids_R[changed] = changed_CV.max(dim=-1)
    drawn = [r for r, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawn:
        scores_DV = logits_RV[drawn]
        place = {r: c for c, r in enumerate(changed)}
        both = [(d, place[r]) for d, r in enumerate(drawn) if r in place]
        if both:
            scores_DV[[d for d, _ in both]] = changed_CV[[c for _, c in both]]
        ids_R[drawn] = _draw(scores_DV.sub_(best_R[drawn, None]), [rows[r] for r in drawn])
    return torch.where(best_R.isfinite(), ids_R, NO_TOKEN)


def sampled_logprobs(
    logits_RV: torch.Tensor, rows: Sequence[SampleRow], token_ids: Sequence[int]
) -> tuple[TokenLogprobs | None, ...]:
    """How probable the model found each row's token: None where that is not asked for, or there is no token.

    Args:
        logits_RV: float32, as the model gave them; not changed.
        token_ids: what ``sample`` chose from them.
    """
    wanted = [
        Wanted(r, token_id, row.sampling.logprobs)
        for r, (row, token_id) in enumerate(zip(rows, token_ids, strict=True))
        if row.sampling.logprobs is not None and token_id != NO_TOKEN
    ]
    found = logprobs_in_slices(wanted, lambda at_S: logits_RV[at_S.to(logits_RV.device)])
    by_row = {one.row: logprobs for one, logprobs in zip(wanted, found, strict=True)}
    return tuple([by_row.get(r) for r in range(len(rows))])


def _draw(shifted_RV: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """Gumbel-max over what the filters leave; ``shifted`` are logits whose largest is 0, and is overwritten."""
    device = shifted_RV.device
    temperature = [max(row.sampling.temperature, _LEAST_TEMPERATURE) for row in rows]
    scaled_RV = shifted_RV.div_(torch.tensor(temperature, device=device)[:, None])
    _filter_top_k(scaled_RV, [row.sampling.top_k for row in rows])
    _filter_top_p(scaled_RV, [row.sampling.top_p for row in rows])
    least = torch.tensor([_least_score(row.sampling.min_p) for row in rows], device=device)
    row_N, token_N = torch.nonzero(scaled_RV >= least[:, None], as_tuple=True)
    seeds = np.array([row.sampling.seed for row in rows], dtype=np.uint64).view(np.int64)
    noise_N = gumbel_noise(
        torch.from_numpy(seeds).to(device),
        torch.tensor([row.index for row in rows], device=device),
        torch.tensor([row.choice for row in rows], device=device),
        row_N,
        token_N,
    )
    scores_RV = torch.full_like(scaled_RV, -torch.inf)
    scores_RV[row_N, token_N] = scaled_RV[row_N, token_N] + noise_N
    return scores_RV.argmax(dim=-1)


def _least_score(min_p: float) -> float:
    """How far below the best, at 0, an id may be: min-p's share of the best's probability, whatever normalises both.

    Noise is bounded, so ids further than a certain distance below the best can never win, and need none.
    """
    return max(GUMBEL_MIN - GUMBEL_MAX, math.log(min_p) if min_p > 0 else -math.inf)


def _filter_top_k(scaled_RV: torch.Tensor, top_k: Sequence[int]) -> None:
    """Set what is below each row's k-th largest to -inf; 0 keeps all."""
    vocabulary = scaled_RV.shape[1]
    some = [r for r, k in enumerate(top_k) if 0 < k < vocabulary]
    if not some:
        return
    at = torch.tensor(some, device=scaled_RV.device)
    ranks = torch.tensor([top_k[r] - 1 for r in some], device=scaled_RV.device)
    chosen = scaled_RV[at]
    largest = chosen.topk(max(top_k[r] for r in some), dim=-1).values
    threshold = largest.gather(1, ranks[:, None])
    scaled_RV[at] = chosen.masked_fill_(chosen < threshold, -torch.inf)


def _filter_top_p(scaled_RV: torch.Tensor, top_p: Sequence[float]) -> None:
    """Keep each row's fewest most probable ids whose probabilities reach top_p, the lower id first among equals."""
    some = [r for r, p in enumerate(top_p) if p < 1]
    if not some:
        return
    at = torch.tensor(some, device=scaled_RV.device)
    limit = torch.tensor([top_p[r] for r in some], device=scaled_RV.device)
    ordered, order = scaled_RV[at].sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of all ids that go before this one
    dropped = before >= limit[:, None]
    dropped[:, 0] = False
    scaled_RV[at] = ordered.masked_fill_(dropped, -torch.inf).scatter(1, order, ordered)
