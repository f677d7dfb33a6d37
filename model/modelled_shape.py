"""Named shapes of modelled models: how long their steps take and how large their KV is.

Pure. Knows numbers only; model/modelled_runner.py acts them out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.core.errors import SpecError

PREFIX = "modelled:"


@dataclass(frozen=True, slots=True)
class StepLatency:
    """Seconds of one step, as router estimates have it (DistServe, section 4; Splitwise, section 3).

    Prefill ``a + b * sum(L) + c * sum(L^2)`` over prompts of L tokens, decode ``alpha + beta * sum(context) + gamma *
    batch`` over sequences. A chunk of a prompt costs what it adds to ``L`` and ``L^2``, so that chunks add up but for
    ``a``. A step with both pays both, but only the larger fixed term.
    """

    prefill_a_s: float = 0.0
    prefill_b_s: float = 0.0
    prefill_c_s: float = 0.0
    decode_alpha_s: float = 0.0
    decode_beta_s: float = 0.0
    decode_gamma_s: float = 0.0

    def step_s(self, new_tokens: NDArray[np.integer], context_lens: NDArray[np.integer]) -> float:
        """Seconds for sequences [S] that compute ``new_tokens`` each and then have ``context_lens``.

        One new token after others is a decode, anything else a chunk of prefill.
        """
        new, context = new_tokens.astype(np.int64), context_lens.astype(np.int64)
        decodes = (new == 1) & (context > 1)
        chunk_tokens, chunk_ends = new[~decodes], context[~decodes]
        chunk_squares = chunk_ends**2 - (chunk_ends - chunk_tokens) ** 2
        num_decodes = int(decodes.sum())
        fixed_s = max(
            self.prefill_a_s if num_decodes < len(new) else 0.0,
            self.decode_alpha_s if num_decodes else 0.0,
        )
        prefill_s = self.prefill_b_s * int(chunk_tokens.sum()) + self.prefill_c_s * int(chunk_squares.sum())
        decode_s = self.decode_beta_s * int(context[decodes].sum()) + self.decode_gamma_s * num_decodes
        return fixed_s + prefill_s + decode_s


@dataclass(frozen=True, slots=True)
class ModelledShape:
    """A modelled model: real KV, small, and a made-up vocabulary."""

    latency: StepLatency
    num_layers: int = 4
    layer_groups: tuple[int, ...] = ()  # ends; none: chosen for a step of one block
    num_kv_heads: int = 1
    head_dim: int = 2  # of float32; even, so that a token's K and V in a layer are whole 64-bit words
    vocab_size: int = 32_000
    max_position_embeddings: int = 2**17
    eos_token_ids: tuple[int, ...] = ()  # none: every answer has the length that was asked for

    @property
    def layer_words(self) -> int:
        """64-bit words of one token's K and V in one layer."""
        return 2 * self.num_kv_heads * self.head_dim // 2

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token's KV over all layers."""
        return 8 * self.num_layers * self.layer_words


_SHAPES = {
    "instant": ModelledShape(StepLatency()),
    "paced": ModelledShape(  # round numbers, slow enough that events fall between steps
        StepLatency(prefill_a_s=5e-3, prefill_b_s=5e-5, decode_alpha_s=10e-3, decode_gamma_s=1e-4)
    ),
    "a100-13b": ModelledShape(  # OPT-13B on one A100-80GB
        StepLatency(
            prefill_a_s=18e-3, prefill_b_s=102e-6, decode_alpha_s=20e-3, decode_beta_s=0.6e-6, decode_gamma_s=40e-6
        )
    ),
}


def modelled_shape(path: str) -> ModelledShape:
    """The shape that ``modelled:<name>`` names.

    Raises:
        SpecError: no such name.
    """
    shape = _SHAPES.get(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else None
    if shape is None:
        raise SpecError(f"{path}: not a modelled model; known: {', '.join(PREFIX + name for name in _SHAPES)}")
    return shape
