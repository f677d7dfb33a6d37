"""Tables of the rotary embedding, one row for each position, and the rotation by them.

Knows every supported rope type; knows no sequence: an angle depends on a token's position alone, so that cached keys
may be shared, moved and recomputed.

Shape letters: P positions, D head size, T tokens, H heads.
"""

import math
from dataclasses import dataclass

import torch

from twinpool.model.config import ModelConfig
from twinpool.model.rope_config import RopeConfig, RopeType


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of every position (RoFormer, section 3.4.2), for the rotate-half order of Hugging Face."""

    cos: torch.Tensor  # [P, 1, D]
    signed_sin: torch.Tensor  # [P, 1, D]; the first half negated, as the halves change places


def make_rotary(config: ModelConfig, num_positions: int, dtype: torch.dtype, device: str = "cpu") -> Rotary:
    """Tables for positions ``[0, num_positions)``: computed in float32, rounded to ``dtype``, as in transformers."""
    frequencies = compute_frequencies(config.rope, config.head_dim, num_positions, device)
    angles = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequencies
    scale = _attention_scale(config.rope)
    cos, sin = (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)
    return Rotary(torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None])


def rotate(x_THD: torch.Tensor, cos_T1D: torch.Tensor, signed_sin_T1D: torch.Tensor) -> torch.Tensor:
    """Turn each pair (d, d + D / 2) by its position's angle."""
    return x_THD * cos_T1D + x_THD.roll(x_THD.shape[-1] // 2, dims=-1) * signed_sin_T1D


def compute_frequencies(rope: RopeConfig, head_dim: int, num_positions: int, device: str = "cpu") -> torch.Tensor:
    """Radians per position, float32: ``[1, D / 2]``, or ``[P, D / 2]`` where they change with it (dynamic)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    if rope.rope_type is RopeType.DYNAMIC:
        return _dynamic(rope, exponents, num_positions)
    plain = (1.0 / rope.theta**exponents)[None]
    match rope.rope_type:
        case RopeType.DEFAULT:
            return plain
        case RopeType.LINEAR:
            return plain / rope.factor
        case RopeType.LLAMA3:
            return _llama3(rope, plain)
        case RopeType.YARN:
            return _yarn(rope, plain)


def _dynamic(rope: RopeConfig, exponents: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Dynamic NTK: the base grows with the length, which for the token at position p is p + 1.

    So it is in transformers when tokens come one by one; see docs/decisions/007.
    """
    lengths = torch.arange(1, num_positions + 1, dtype=torch.float32, device=exponents.device)
    lengths = lengths.clamp(min=rope.original_length)[:, None]
    head_dim = 2 * len(exponents)
    stretch = rope.factor * lengths / rope.original_length - (rope.factor - 1)
    return 1.0 / (rope.theta * stretch ** (head_dim / (head_dim - 2))) ** exponents


def _llama3(rope: RopeConfig, plain: torch.Tensor) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched by the factor, short ones kept, those between them blended."""
    turns = rope.original_length * plain / (2 * math.pi)  # in the original context
    kept = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * plain / rope.factor + kept * plain


def _yarn(rope: RopeConfig, plain: torch.Tensor) -> torch.Tensor:
    """YaRN (Peng et al. 2023, section 3.2): a ramp over the dimensions from kept to stretched frequencies."""
    head_dim = 2 * plain.shape[-1]

    def dimension_that_turns(times: float) -> float:
        length = rope.original_length / (times * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(rope.theta))

    low, high = dimension_that_turns(rope.beta_fast), dimension_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32, device=plain.device) - low) / (high - low)
    stretched = ramp.clamp(0, 1)
    return plain / rope.factor * stretched + plain * (1 - stretched)


def _attention_scale(rope: RopeConfig) -> float:
    """What cosines and sines are multiplied by: YaRN's temperature (section 3.4), 1 for every other type."""
    if rope.rope_type is not RopeType.YARN:
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
