"""Computes a decoder over one packed batch: tokens in, hidden states out, keys and values into the paged pool.

Knows no request, no block's owner and no sampling. One decoder serves Llama, Mistral, Qwen2 and Qwen3: they differ by
biases (inside the products), by a norm of queries and keys, and by windows (inside the plan of attention).

Shape letters: T tokens, C width, H query heads, K KV heads, D head size, Q rows to sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from twinpool.kernels.paged_attention import AttentionPlan, paged_attention, write_kv
from twinpool.kernels.swiglu import swiglu
from twinpool.model.config import ModelConfig
from twinpool.model.rope import Rotary, rotate
from twinpool.model.weights import LayerWeights, Weights


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm of the last axis, in float32 and rounded before the weight, as in Hugging Face's Llama.

    Args:
        x: ``[T, C]`` with a weight ``[C]``, or ``[T, H, D]`` with one ``[H, D]``.
    """
    if x.dtype == torch.float32 and weight.dim() == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Weights and tables of one model; holds no state of any batch.

    With ``deterministic``, the weights' products and the plan's attention must be deterministic too. What else is
    computed here has the bits of each row alone: sums over a row's width, and operations that are rounded exactly.
    """

    config: ModelConfig
    weights: Weights
    rotary: Rotary
    deterministic: bool = False

    def compute(
        self,
        token_ids_T: torch.Tensor,
        pool: torch.Tensor,
        plan: AttentionPlan,
        on_written: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Run all layers; the step's keys and values end up in ``pool``.

        Args:
            token_ids_T: int64; an id outside the vocabulary raises IndexError before anything is written.
            on_written: called with a layer's index as soon as its keys and values are in the pool.

        Returns:
            Hidden states ``[T, C]`` before the final norm.
        """
        hidden_TC = F.embedding(token_ids_T, self.weights.embedding)
        cos, signed_sin = self.rotary.cos[plan.positions], self.rotary.signed_sin[plan.positions]
        for index, layer in enumerate(self.weights.layers):
            q_THD, kv_TED = self._project(hidden_TC, layer, cos, signed_sin)
            write_kv(kv_TED, pool, index, plan)
            if on_written is not None:
                on_written(index)
            attended_TE = paged_attention(q_THD, pool, index, plan)
            hidden_TC = hidden_TC + layer.output(attended_TE)
            hidden_TC = hidden_TC + self._feed_forward(hidden_TC, layer)
        return hidden_TC

    def logits(self, hidden_QC: torch.Tensor) -> torch.Tensor:
        """Final norm and head for the rows that are to be sampled: float32 ``[Q, vocab]``."""
        normed_QC = rms_norm(hidden_QC, self.weights.final_norm, self.config.rms_norm_eps)
        return self.weights.lm_head(normed_QC).float()

    def _project(
        self, hidden_TC: torch.Tensor, layer: LayerWeights, cos: torch.Tensor, signed_sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries ``[T, H, D]``, and rotated keys before values ``[T, 2 * K, D]``; Qwen3 norms them before."""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        normed_TC = rms_norm(hidden_TC, layer.input_norm, self.config.rms_norm_eps)
        qkv_THD = layer.qkv(normed_TC).view(len(hidden_TC), -1, self.config.head_dim)
        turned = qkv_THD[:, : heads + kv_heads]
        plain = turned if layer.qk_norm is None else rms_norm(turned, layer.qk_norm, self.config.rms_norm_eps)
        turned.copy_(rotate(plain, cos, signed_sin))
        return qkv_THD[:, :heads], qkv_THD[:, heads:]

    def _feed_forward(self, hidden_TC: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        normed_TC = rms_norm(hidden_TC, layer.post_norm, self.config.rms_norm_eps)
        return layer.down(swiglu(layer.gate_up(normed_TC), self.deterministic))
