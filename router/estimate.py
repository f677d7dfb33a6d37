"""How long prefills, decode steps and transfers take: three small linear forms and their fit to measurements.

Knows no worker, queue or policy; every method is vectorised over whatever it is given.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers = TypeVar("Numbers", float, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """``a + b * sum(L) + c * sum(L^2)`` seconds for prompts of lengths L (DistServe, OSDI'24, appendix A.3).

    b is the linear layers' work per token, c the attention's per pair of tokens, a what a batch costs by itself.
    The defaults are a few million parameters on one CPU core, rather slow than fast.
    """

    a_s: float = 5e-3
    b_s_per_token: float = 5e-5
    c_s_per_token2: float = 1e-8

    def seconds(self, tokens: Numbers, squares: Numbers) -> Numbers:
        """Time to prefill prompts whose lengths sum to ``tokens``, and the squares of whose lengths to ``squares``."""
        return self.a_s + self.b_s_per_token * tokens + self.c_s_per_token2 * squares


@dataclass(frozen=True, slots=True)
class StepCost:
    """``alpha + beta * sum(context) + gamma * batch`` seconds for one decode step (DistServe, OSDI'24, appendix A.3).

    alpha is reading the weights, beta reading the KV, gamma the linear layers' work per sequence.
    """

    alpha_s: float = 5e-3
    beta_s_per_token: float = 1e-6
    gamma_s_per_sequence: float = 5e-4

    def seconds(self, context_tokens: Numbers, batch: Numbers) -> Numbers:
        """Time of one step of ``batch`` sequences that hold ``context_tokens`` tokens of KV together."""
        return self.alpha_s + self.beta_s_per_token * context_tokens + self.gamma_s_per_sequence * batch


@dataclass(frozen=True, slots=True)
class LinkCost:
    """``latency + bytes / bandwidth`` seconds to move KV between two workers."""

    latency_s: float = 3e-3
    bytes_per_s: float = 5e8

    def seconds(self, num_bytes: Numbers) -> Numbers:
        """Time to move ``num_bytes`` in one go."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """All that predictions are made from; one for the cluster."""

    prefill: PrefillCost = PrefillCost()
    step: StepCost = StepCost()
    link: LinkCost = LinkCost()
    kv_token_bytes: int = 4096  # of one token over all layers
    chunk_tokens: int = 512  # prefill tokens that share a step with decoding


def fit_prefill(tokens: NDArray[np.float64], squares: NDArray[np.float64], seconds: NDArray[np.float64]) -> PrefillCost:
    """Coefficients for measured prefills; three arrays [M] of sum(L), sum(L^2) and seconds over 0."""
    return PrefillCost(*_fit(np.stack([np.ones_like(tokens), tokens, squares], axis=1), seconds))


def fit_step(context_tokens: NDArray[np.float64], batch: NDArray[np.float64], seconds: NDArray[np.float64]) -> StepCost:
    """Coefficients for measured decode steps; three arrays [M]."""
    return StepCost(*_fit(np.stack([np.ones_like(batch), context_tokens, batch], axis=1), seconds))


def fit_link(num_bytes: NDArray[np.float64], seconds: NDArray[np.float64]) -> LinkCost:
    """Latency and bandwidth for measured transfers; two arrays [M]. Times that do not grow mean infinite bandwidth."""
    latency_s, s_per_byte = _fit(np.stack([np.ones_like(num_bytes), num_bytes], axis=1), seconds)
    return LinkCost(latency_s, 1 / s_per_byte if s_per_byte else float("inf"))


def _fit(terms: NDArray[np.float64], seconds: NDArray[np.float64]) -> list[float]:
    """Least squares of the *relative* error, so that short runs count as much as long ones; no coefficient below 0.

    A term that would come out negative is left out and the others fitted again: noise must not make a longer prompt
    cheaper.
    """
    kept = list(range(terms.shape[1]))
    relative = terms / seconds[:, None]
    scale = np.abs(relative).max(axis=0)
    while kept:
        found = np.linalg.lstsq(relative[:, kept] / scale[kept], np.ones_like(seconds), rcond=None)[0] / scale[kept]
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    coefficients = [0.0] * terms.shape[1]
    for index, value in zip(kept, found, strict=True):
        coefficients[index] = float(value)
    return coefficients
