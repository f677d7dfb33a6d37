"""Reads which rotary embedding a model uses, in the new spelling (``rope_parameters``) and the old (``rope_scaling``).

Knows the fields and defaults of Hugging Face's configurations; computes no angle.
"""

from dataclasses import dataclass
from enum import StrEnum, unique

from twinpool.model.config_file import Fields

DEFAULT_THETA = 10_000.0
MAX_CONTEXT = 2**31 - 1


@unique
class RopeType(StrEnum):
    """How frequencies follow from the base; the values are Hugging Face's ``rope_type``."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LLAMA3 = "llama3"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """All that the angles depend on beside the head size."""

    theta: float = DEFAULT_THETA
    rope_type: RopeType = RopeType.DEFAULT
    factor: float = 1.0  # how much longer than ``original_length`` a context may be
    original_length: int = 0  # tokens the model was trained on before scaling; 0 for the default type
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: scales cosines and sines; None follows from the factor
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn


# Fields of any rope type; a type ignores those of the others, as transformers does.
_FIELDS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate", "finetuned"),
}


def read_rope(fields: Fields, head_dim: int, max_position_embeddings: int) -> RopeConfig:
    """Read the rotary embedding of a config.json; ``rope_scaling`` goes before ``rope_parameters``, as in transformers.

    Raises:
        SpecError: the type is not supported, or a field of it is missing, unknown or out of range.
    """
    rope = fields.section("rope_scaling" if fields.get("rope_scaling") else "rope_parameters")
    rope_type = _rope_type(rope)
    for section in (rope, fields):
        if section.get("partial_rotary_factor", 1.0) != 1.0:
            section.refuse("partial_rotary_factor", section.get("partial_rotary_factor"), "is not supported")
    unknown = sorted(set(rope.values) - _FIELDS)
    if unknown:
        rope.refuse(unknown[0], rope.values[unknown[0]], "is not a known field of a rotary embedding")
    theta = (rope if rope.get("rope_theta") is not None else fields).real("rope_theta", DEFAULT_THETA)
    match rope_type:
        case RopeType.DEFAULT:
            return RopeConfig(theta)
        case RopeType.LINEAR:
            return RopeConfig(theta, rope_type, _factor(rope), max_position_embeddings)
        case RopeType.DYNAMIC:
            if head_dim <= 2:
                fields.refuse("head_dim", head_dim, "is too small for rope_type 'dynamic'")
            return RopeConfig(theta, rope_type, _factor(rope), max_position_embeddings)
        case RopeType.LLAMA3:
            return _read_llama3(rope, theta, _original_length(fields, rope, max_position_embeddings))
        case RopeType.YARN:
            original = _original_length(fields, rope, max_position_embeddings)
            return _read_yarn(rope, theta, original, max_position_embeddings)


def max_context(rope: RopeConfig, max_position_embeddings: int) -> int:
    """The longest context that the positions are meant for.

    Configurations with llama3 name it outright. For linear and dynamic scaling ``max_position_embeddings`` is the
    original length; for yarn checkpoints differ, so the longer of the two readings holds.
    """
    match rope.rope_type:
        case RopeType.DEFAULT | RopeType.LLAMA3:
            return max_position_embeddings
        case RopeType.LINEAR | RopeType.DYNAMIC | RopeType.YARN:
            return min(MAX_CONTEXT, max(max_position_embeddings, int(rope.original_length * rope.factor)))


def _rope_type(rope: Fields) -> RopeType:
    name = rope.get("rope_type", rope.get("type", "default"))
    if name not in tuple(RopeType):
        rope.refuse("rope_type", name, f"is not supported; supported: {', '.join(RopeType)}")
    return RopeType(name)


def _factor(rope: Fields) -> float:
    return rope.real("factor", least=1.0)


def _original_length(fields: Fields, rope: Fields, max_position_embeddings: int) -> int:
    """The config's own field goes before the section's, as in transformers."""
    name = "original_max_position_embeddings"
    return (fields if fields.get(name) is not None else rope).whole(name, max_position_embeddings)


def _read_llama3(rope: Fields, theta: float, original_length: int) -> RopeConfig:
    low, high = rope.real("low_freq_factor"), rope.real("high_freq_factor")
    if high <= low:
        rope.refuse("high_freq_factor", high, f"must be above low_freq_factor {low}")
    return RopeConfig(
        theta, RopeType.LLAMA3, _factor(rope), original_length, low_freq_factor=low, high_freq_factor=high
    )


def _read_yarn(rope: Fields, theta: float, original_length: int, max_position_embeddings: int) -> RopeConfig:
    if rope.get("factor") is None and max_position_embeddings >= original_length:
        factor = max_position_embeddings / original_length
    else:
        factor = _factor(rope)
    if theta <= 1.0:
        rope.refuse("rope_theta", theta, "must be above 1 for rope_type 'yarn'")
    fast, slow = rope.real("beta_fast", 32.0), rope.real("beta_slow", 1.0)
    if fast < slow:
        rope.refuse("beta_fast", fast, f"must not be below beta_slow {slow}")
    return RopeConfig(
        theta,
        RopeType.YARN,
        factor,
        original_length,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=rope.optional_real("attention_factor"),
        mscale=rope.optional_real("mscale"),
        mscale_all_dim=rope.optional_real("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )
