"""Sampling once more, row by row in Python's own float64: what model/sampling.py is held to.

Knows none of its code; the noise alone comes from kernels/noise.py.
"""

import math
from collections import Counter

import numpy as np
import torch

from twinpool.kernels.noise import gumbel_noise
from twinpool.model.batch import NO_TOKEN, SampleRow

SLACK = 1e-5  # between float32 and float64: of a probability


def changed_logits(logits: list[float], row: SampleRow) -> list[float]:
    """Bias, forbidden ids and penalties, one token after another."""
    sampling, changed = row.sampling, list(logits)
    answer = Counter(row.context[len(row.context) - row.index :])
    for token, bias in sampling.logit_bias:
        if token < len(changed):
            changed[token] += bias
    for token in range(len(changed)):
        if token in row.forbidden_ids:
            changed[token] = -math.inf
        if token in row.context and sampling.repetition_penalty != 1:
            is_positive = changed[token] > 0
            changed[token] *= 1 / sampling.repetition_penalty if is_positive else sampling.repetition_penalty
        if token in answer:
            changed[token] -= sampling.presence_penalty + sampling.frequency_penalty * answer[token]
    return changed


def kept_ids(scaled: list[float], row: SampleRow, slack: float) -> set[int]:
    """What the filters leave; ``slack`` shifts the limits of top-p and min-p, over 0 towards keeping more."""
    sampling = row.sampling
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if 0 < sampling.top_k < len(order):
        order = [i for i in order if scaled[i] >= scaled[order[sampling.top_k - 1]]]
    weights = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    if sampling.top_p < 1:
        total, before, kept = math.fsum(weights.values()), 0.0, []
        for i in order:
            if kept and before / total >= sampling.top_p + slack:
                break
            kept.append(i)
            before += weights[i]
        order = kept
    return {i for i in order if weights[i] >= sampling.min_p * (1 - slack)}


def possible_tokens(logits: list[float], row: SampleRow) -> set[int]:
    """Every token that rounding may make of a row's parameters: nearly always one."""
    if any(math.isnan(x) or x == math.inf for x in logits):
        return {NO_TOKEN}
    changed = changed_logits(logits, row)
    if max(changed) == -math.inf:
        return {NO_TOKEN}
    if row.sampling.temperature == 0:
        return {i for i, x in enumerate(changed) if x >= max(changed) - SLACK * max(1.0, abs(max(changed)))}
    temperature = max(row.sampling.temperature, 1e-30)
    scaled = [(x - max(changed)) / temperature for x in changed]
    noise = noise_of(row, len(logits))
    surely, perhaps = kept_ids(scaled, row, -SLACK), kept_ids(scaled, row, SLACK)
    surely = surely or {changed.index(max(changed))}
    best = max(scaled[i] + noise[i] for i in surely)
    return {i for i in perhaps if scaled[i] + noise[i] >= best - 1e-3}


def noise_of(row: SampleRow, vocabulary: int) -> list[float]:
    seed = torch.from_numpy(np.array([row.sampling.seed], np.uint64).view(np.int64))
    index, choice = torch.tensor([row.index]), torch.tensor([row.choice])
    zeros = torch.zeros(vocabulary, dtype=torch.int64)
    return gumbel_noise(seed, index, choice, zeros, torch.arange(vocabulary)).tolist()
