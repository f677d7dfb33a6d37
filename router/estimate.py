"""How long engine steps and transfers take: the forms that the router predicts with and the simulator runs on.

Knows no worker, queue, policy or hardware; a form is vectorised over whatever it is given.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers = TypeVar("Numbers", float, NDArray[np.float64])


class StepForm(Protocol):
    """How long engine steps take on workers of one kind: hardware, model and shape."""

    def seconds(
        self, prefill_tokens: Numbers, prefill_squares: Numbers, context_tokens: Numbers, batch: Numbers
    ) -> Numbers:
        """One step that computes chunks of prompts and decodes ``batch`` sequences. No work takes no time.

        Args:
            prefill_tokens: of all chunks together.
            prefill_squares: sum over chunks of ``end**2 - start**2``, where a chunk is the tokens [start, end) of its
                prompt; so the chunks of one prompt of L tokens sum to L**2.
            context_tokens: tokens that the decoded sequences hold together, those computed in this step included.
            batch: sequences that decode one token each.

        All four are numbers, or all are arrays of one shape, which the result has too.
        """
        ...

    def decode_seconds(self, context_tokens: float, batch: int, num_steps: int) -> float:
        """So many decode steps one after another, of a batch that holds ``context_tokens`` in the first of them.

        Each step adds ``batch`` tokens to the context. The time taken does not grow with ``num_steps``.
        """
        ...


@dataclass(frozen=True, slots=True)
class LinearForm:
    """``a + b * tokens + c * squares`` for prefill, ``alpha + beta * context + gamma * batch`` for decode, in seconds.

    From DistServe (OSDI'24, appendix A.3): b is the linear layers' work per token, c the attention's per pair of
    tokens, alpha is reading the weights, beta reading the KV, gamma the linear layers' work per sequence; a is what a
    step of prefill costs by itself. A step with both pays both, but only the larger fixed term: the weights are read
    once. The defaults are a few million parameters on one CPU core, rather slow than fast.
    """

    prefill_a_s: float = 5e-3
    prefill_b_s: float = 5e-5
    prefill_c_s: float = 1e-8
    decode_alpha_s: float = 5e-3
    decode_beta_s: float = 1e-6
    decode_gamma_s: float = 5e-4

    def seconds(
        self, prefill_tokens: Numbers, prefill_squares: Numbers, context_tokens: Numbers, batch: Numbers
    ) -> Numbers:
        fixed_s: Numbers = larger(self.prefill_a_s * (prefill_tokens > 0), self.decode_alpha_s * (batch > 0))
        return (
            fixed_s
            + self.prefill_b_s * prefill_tokens
            + self.prefill_c_s * prefill_squares
            + self.decode_beta_s * context_tokens
            + self.decode_gamma_s * batch
        )

    def decode_seconds(self, context_tokens: float, batch: int, num_steps: int) -> float:
        if not batch:
            return 0.0
        first_s = self.decode_alpha_s + self.decode_beta_s * context_tokens + self.decode_gamma_s * batch
        return num_steps * (first_s + self.decode_beta_s * batch * (num_steps - 1) / 2)


def larger(one: Any, other: Any) -> Any:
    """The larger of two finite numbers, or of each two of arrays; on numbers much faster than numpy's."""
    if isinstance(one, np.ndarray):
        return np.maximum(one, other)
    return one * (one >= other) + other * (other > one)


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
    """All that predictions for workers of one kind are made from."""

    steps: StepForm = LinearForm()
    link: LinkCost = LinkCost()  # on which KV leaves such a worker
    kv_token_bytes: int = 4096  # of one token over all layers
    chunk_tokens: int = 512  # prompt tokens that one step may compute


def fit_link(num_bytes: NDArray[np.float64], seconds: NDArray[np.float64]) -> LinkCost:
    """Latency and bandwidth for measured transfers; two arrays [M]. Times that do not grow mean infinite bandwidth."""
    latency_s, s_per_byte = fit_relative(np.stack([np.ones_like(num_bytes), num_bytes], axis=1), seconds)
    return LinkCost(latency_s, 1 / s_per_byte if s_per_byte else float("inf"))


def fit_relative(terms: NDArray[np.float64], seconds: NDArray[np.float64]) -> list[float]:
    """Coefficients of ``terms`` [M, K] by least squares of the *relative* error, so that short runs count as much as
    long ones; none is below 0.

    A term that would come out negative is left out and the others fitted again: noise must not make a longer prompt
    cheaper. ``seconds`` [M] are over 0.
    """
    kept = list(range(terms.shape[1]))
    relative = terms / seconds[:, None]
    scale = np.abs(relative).max(axis=0)
    scale[scale == 0] = 1.0
    while kept:
        found = np.linalg.lstsq(relative[:, kept] / scale[kept], np.ones_like(seconds), rcond=None)[0] / scale[kept]
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    coefficients = [0.0] * terms.shape[1]
    for index, value in zip(kept, found, strict=True):
        coefficients[index] = float(value)
    return coefficients
