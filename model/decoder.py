"""Computes a decoder over one packed batch: tokens in, hidden states out, keys and values into the paged pool.

Knows no request, no block's owner and no sampling. Llama; the families that differ by a bias or a norm join here.

Shape letters: T tokens, C width, H query heads, K KV heads, D head size, P positions, Q rows to sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from twinpool.kernels.paged_attention import AttentionPlan, paged_attention, write_kv
from twinpool.model.config import ModelConfig
from twinpool.model.weights import LayerWeights, Weights


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of every position (RoFormer, section 3.4.2), for the rotate-half order of Hugging Face."""

    cos: torch.Tensor  # [P, 1, D]
    signed_sin: torch.Tensor  # [P, 1, D]; the first half negated, as the halves change places


def make_rotary(config: ModelConfig, num_positions: int, dtype: torch.dtype, device: str = "cpu") -> Rotary:
    """Tables for positions ``[0, num_positions)``: computed in float32, rounded to ``dtype``, as in transformers."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    angles = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None, None] * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rotary(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def rotate(x_THD: torch.Tensor, cos_T1D: torch.Tensor, signed_sin_T1D: torch.Tensor) -> torch.Tensor:
    """Turn each pair (d, d + D / 2) by its position's angle."""
    return x_THD * cos_T1D + x_THD.roll(x_THD.shape[-1] // 2, dims=-1) * signed_sin_T1D


def rms_norm(x_TC: torch.Tensor, weight_C: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm, accumulated in float32 and rounded before the weight, as in Hugging Face's Llama."""
    wide_TC = x_TC.float()
    scale_T1 = torch.rsqrt(wide_TC.square().mean(-1, keepdim=True) + eps)
    return weight_C * (wide_TC * scale_T1).to(x_TC.dtype)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Weights and tables of one model; holds no state of any batch."""

    config: ModelConfig
    weights: Weights
    rotary: Rotary

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
            hidden_TC = hidden_TC + F.linear(attended_TE, layer.output)
            hidden_TC = hidden_TC + self._feed_forward(hidden_TC, layer)
        return hidden_TC

    def logits(self, hidden_QC: torch.Tensor) -> torch.Tensor:
        """Final norm and head for the rows that are to be sampled: float32 ``[Q, vocab]``."""
        normed_QC = rms_norm(hidden_QC, self.weights.final_norm, self.config.rms_norm_eps)
        return F.linear(normed_QC, self.weights.lm_head).float()

    def _project(
        self, hidden_TC: torch.Tensor, layer: LayerWeights, cos: torch.Tensor, signed_sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries ``[T, H, D]``, and rotated keys before values ``[T, 2 * K, D]``."""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        normed_TC = rms_norm(hidden_TC, layer.input_norm, self.config.rms_norm_eps)
        qkv_THD = F.linear(normed_TC, layer.qkv).view(len(hidden_TC), -1, self.config.head_dim)
        turned = qkv_THD[:, : heads + kv_heads]
        turned.copy_(rotate(turned, cos, signed_sin))
        return qkv_THD[:, :heads], qkv_THD[:, heads:]

    def _feed_forward(self, hidden_TC: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """SwiGLU (Shazeer 2020)."""
        normed_TC = rms_norm(hidden_TC, layer.post_norm, self.config.rms_norm_eps)
        gate, up = F.linear(normed_TC, layer.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, layer.down)
