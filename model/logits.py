"""Changes raw logits as a request asks, before a token is chosen: bias, forbidden ids, penalties.

Knows no temperature, no filter and no noise: what is done with the result is model/sampling.py's business.

Shape letters: R rows, V vocabulary, N entries (a row, a token of it, a value).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from twinpool.model.batch import SampleRow

_LARGEST = torch.finfo(torch.float32).max
_LONG_TOKENS = 8192  # from about here on, counting over the whole vocabulary is faster than sorting


def changes_logits(row: SampleRow) -> bool:
    """Whether ``change_logits`` would do anything to this row."""
    return bool(row.sampling.logit_bias or row.forbidden_ids or row.sampling.has_penalties)


def change_logits(logits_RV: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    """Apply each row's bias, then its forbidden ids (-inf), then its penalties; in place.

    The repetition penalty divides positive logits of tokens that the context holds and multiplies the others (CTRL,
    Keskar et al. 2019, section 4.1, with transformers' rule for the sign). The presence penalty is subtracted once
    for each token of the answer, the frequency penalty once for each time it stands there (OpenAI's definition). All
    counts come from the row's own context, so they do not depend on the batch or on who sampled the tokens before.
    Finite logits stay finite but where they are forbidden; NaN and +inf are not hidden by forbidding them. Ids outside
    the vocabulary have no effect.

    Args:
        logits_RV: float32.
        rows: R of them; ``context`` is complete where there are penalties.
    """
    _add(logits_RV, [_bias(row) for row in rows])
    _add(logits_RV, [(np.array(row.forbidden_ids, np.int64), np.float64(-np.inf)) for row in rows])
    _divide(logits_RV, [_repetition(row) for row in rows])
    _add(logits_RV, [_answer_penalty(row) for row in rows])


Part = tuple[NDArray[np.int64], NDArray[np.float64] | np.float64]  # ids of one row, and a value for each or for all
_NONE: Part = (np.empty(0, np.int64), np.float64(0))


def _bias(row: SampleRow) -> Part:
    if not row.sampling.logit_bias:
        return _NONE
    ids, values = zip(*row.sampling.logit_bias, strict=True)
    return np.array(ids, np.int64), np.array(values, np.float64)


def _repetition(row: SampleRow) -> Part:
    """The divisor of every token that the prompt or the answer holds."""
    penalty = row.sampling.repetition_penalty
    if penalty == 1:
        return _NONE
    ids, _ = _count(row.context)
    return ids, np.float64(penalty)


def _answer_penalty(row: SampleRow) -> Part:
    """What to add to the tokens that the answer holds."""
    presence, frequency = row.sampling.presence_penalty, row.sampling.frequency_penalty
    if presence == 0 and frequency == 0:
        return _NONE
    ids, counts = _count(row.context[len(row.context) - row.index :])
    return ids, -(presence + frequency * counts)


def _count(tokens: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that occur, in order, and how often."""
    array = np.fromiter(tokens, np.int64, len(tokens))
    if len(tokens) < _LONG_TOKENS:
        ids, counts = np.unique(array, return_counts=True)
    else:
        by_id = np.bincount(array)
        ids = np.flatnonzero(by_id)
        counts = by_id[ids]
    return ids, counts.astype(np.float64)


_Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # row [N], token [N], value [N]


def _entries(parts: Sequence[Part], logits_RV: torch.Tensor) -> _Entries | None:
    """All rows' parts, one after another; None when there are none."""
    token_N = np.concatenate([ids for ids, _ in parts])
    inside = token_N < logits_RV.shape[1]
    if not inside.any():
        return None
    row_N = np.repeat(np.arange(len(parts)), [len(ids) for ids, _ in parts])
    value_N = np.concatenate([np.broadcast_to(values, ids.shape) for ids, values in parts]).astype(np.float32)
    device = logits_RV.device
    row, token, value = (torch.from_numpy(of_N[inside]).to(device) for of_N in (row_N, token_N, value_N))
    return row, token, value


def _add(logits_RV: torch.Tensor, parts: Sequence[Part]) -> None:
    entries = _entries(parts, logits_RV)
    if entries is not None:
        row_N, token_N, value_N = entries
        logits_RV.index_put_((row_N, token_N), value_N, accumulate=True)


def _divide(logits_RV: torch.Tensor, parts: Sequence[Part]) -> None:
    entries = _entries(parts, logits_RV)
    if entries is None:
        return
    row_N, token_N, value_N = entries
    before_N = logits_RV[row_N, token_N]
    after_N = torch.where(before_N > 0, before_N / value_N, before_N * value_N)
    bounded_N = after_N.clamp(-_LARGEST, _LARGEST)  # a product of finite numbers may leave float32
    logits_RV[row_N, token_N] = torch.where(before_N.isfinite(), bounded_N, before_N)
