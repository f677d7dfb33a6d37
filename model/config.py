"""Reads what a model is from its Hugging Face directory, and refuses by name what the decoder cannot compute.

Knows config.json in its old and new spelling and the named ``dummy:`` shapes; knows no tensor and opens no weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinpool.core.errors import SpecError

DTYPES = ("float32", "bfloat16", "float16")
DUMMY = "dummy:"
ARCHITECTURES = {"llama": "LlamaForCausalLM"}  # model_type -> architecture


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of one decoder; names as in config.json where it has them."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str  # the checkpoint's own
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    architecture: str

    @property
    def num_parameters(self) -> int:
        """Weights kept: tied embeddings count once."""
        heads = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim  # of queries and output, keys and values
        layer = self.hidden_size * (heads + 3 * self.intermediate_size + 2)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


def _dummy(
    layers: int, hidden: int, inner: int, heads: tuple[int, int, int], vocab: int, context: int, tied: bool = False
) -> ModelConfig:
    num_heads, num_kv_heads, head_dim = heads
    return ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        dtype="bfloat16",
        eos_token_ids=(),  # random weights end an answer by length only, so that benchmarks get the length they ask for
        bos_token_id=None,
        architecture=ARCHITECTURES["llama"],
    )


# Sizes of the published models; rope scaling is left out, as it changes no cost.
DUMMY_SHAPES: Mapping[str, ModelConfig] = {
    "tiny": _dummy(4, 128, 352, (4, 2, 32), 512, 4096),
    "llama-3.2-1b": _dummy(16, 2048, 8192, (32, 8, 64), 128_256, 131_072, tied=True),
    "llama-3-8b": _dummy(32, 4096, 14_336, (32, 8, 128), 128_256, 8192),
    "llama-3-70b": _dummy(80, 8192, 28_672, (64, 8, 128), 128_256, 8192),
}


def load_model_config(path: str) -> ModelConfig:
    """Read ``path/config.json`` (and the end tokens of generation_config.json), or look up ``dummy:<shape>``.

    Raises:
        SpecError: a file is missing or corrupt, a field is missing or out of range, or the model needs something that
            the decoder does not have; the text names the file and the field.
    """
    if path.startswith(DUMMY):
        return _dummy_config(path)
    folder = Path(path)
    if not folder.is_dir():
        raise SpecError(f"{path}: no such model directory")
    fields = _Fields(folder / "config.json")
    _refuse_unsupported(fields)
    return _llama_config(fields, _end_tokens(folder, fields))


def _dummy_config(path: str) -> ModelConfig:
    config = DUMMY_SHAPES.get(path.removeprefix(DUMMY))
    if config is None:
        raise SpecError(f"{path}: no such shape; known: {', '.join(DUMMY + name for name in DUMMY_SHAPES)}")
    return config


class _Fields:
    """One JSON object with the file it came from, so that every complaint can name both."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.values: Any = json.loads(file.read_bytes())
        except OSError as error:
            raise SpecError(f"{file}: cannot be read: {error.strerror}") from error
        except ValueError as error:  # not JSON, or not UTF-8
            raise SpecError(f"{file}: is not valid JSON: {error}") from error
        if not isinstance(self.values, dict):
            raise SpecError(f"{file}: is not a JSON object")

    def get(self, name: str, default: Any = None) -> Any:
        """The value; JSON's null counts as absent."""
        value = self.values.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            self.refuse(name, value, "must be a positive whole number")
        return int(value)

    def real(self, name: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            self.refuse(name, value, "must be a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name, False)
        if not isinstance(value, bool):
            self.refuse(name, value, "must be true or false")
        return bool(value)

    def refuse(self, name: str, value: Any, rule: str) -> None:
        raise SpecError(f"{self.file}: {name} {value!r} {rule}")


def _refuse_unsupported(fields: _Fields) -> None:
    model_type = fields.get("model_type")
    if model_type not in ARCHITECTURES:
        fields.refuse("model_type", model_type, f"is not supported; supported: {', '.join(ARCHITECTURES)}")
    wanted = ARCHITECTURES[model_type]
    architectures = fields.get("architectures", [wanted])
    if architectures != [wanted]:
        fields.refuse("architectures", architectures, f"is not supported; supported: [{wanted!r}]")
    if fields.get("hidden_act", "silu") != "silu":
        fields.refuse("hidden_act", fields.get("hidden_act"), "is not supported; supported: 'silu'")
    for name in ("attention_bias", "mlp_bias", "quantization_config", "sliding_window"):
        if fields.get(name) not in (None, False):
            fields.refuse(name, fields.get(name), "is not supported")


def _rope_theta(fields: _Fields) -> float:
    """The base of the rotary embedding: ``rope_parameters`` (new) or ``rope_theta`` and ``rope_scaling`` (old)."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name, {})
        if not isinstance(rope, dict):
            fields.refuse(name, rope, "must be an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            fields.refuse(f"{name}.rope_type", kind, "is not supported; supported: 'default'")
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            fields.refuse(f"{name}.partial_rotary_factor", rope["partial_rotary_factor"], "is not supported")
    theta = fields.get("rope_parameters", {}).get("rope_theta", fields.get("rope_theta", 10_000.0))
    return fields.real("rope_theta", theta)


def _own_dtype(fields: _Fields) -> str:
    """The checkpoint's dtype; a config that names none means float32, as in transformers."""
    dtype = fields.get("dtype", fields.get("torch_dtype", "float32"))
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    if name not in DTYPES:
        fields.refuse("dtype", dtype, f"is not supported; supported: {', '.join(DTYPES)}")
    return str(name)


def _end_tokens(folder: Path, fields: _Fields) -> tuple[int, ...]:
    """End-of-sequence ids; generation_config.json goes before config.json, as in transformers."""
    source = fields
    generation = folder / "generation_config.json"
    if generation.exists():
        source = _Fields(generation)
        if source.get("eos_token_id") is None:
            source = fields
    value = source.get("eos_token_id", [])
    ids = value if isinstance(value, list) else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            source.refuse("eos_token_id", value, "must be a token id or a list of them")
    return tuple(ids)


def _llama_config(fields: _Fields, eos_token_ids: tuple[int, ...]) -> ModelConfig:
    hidden_size, num_heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    num_kv_heads = fields.whole("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        fields.refuse("num_key_value_heads", num_kv_heads, f"does not divide num_attention_heads {num_heads}")
    if fields.get("head_dim") is None and hidden_size % num_heads:
        fields.refuse("num_attention_heads", num_heads, f"does not divide hidden_size {hidden_size}")
    head_dim = fields.whole("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        fields.refuse("head_dim", head_dim, "must be even: rotary embedding turns pairs")
    bos_token_id = fields.get("bos_token_id")
    return ModelConfig(
        num_layers=fields.whole("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=fields.whole("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.whole("vocab_size"),
        rms_norm_eps=fields.real("rms_norm_eps", fields.get("rms_norm_eps", 1e-6)),
        rope_theta=_rope_theta(fields),
        max_position_embeddings=fields.whole("max_position_embeddings", 2048),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        dtype=_own_dtype(fields),
        eos_token_ids=eos_token_ids,
        bos_token_id=bos_token_id if isinstance(bos_token_id, int) else None,
        architecture=ARCHITECTURES["llama"],
    )
