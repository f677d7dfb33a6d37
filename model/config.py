"""Says what a model is, from its Hugging Face directory or a ``dummy:`` shape; refuses by name what cannot be computed.

Knows the families' fields and defaults as transformers has them; knows no tensor and opens no weights.
"""

from dataclasses import dataclass
from pathlib import Path

from twinpool.core.errors import SpecError
from twinpool.model.config_file import Fields, read_fields
from twinpool.model.dummy_shapes import DUMMY, DUMMY_SHAPES
from twinpool.model.rope_config import RopeConfig, max_context, read_rope

DTYPES = ("float32", "bfloat16", "float16")
MAX_LAYERS = 4096
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Family:
    """What one model type has that another has not, with the values its fields take when they are left out."""

    architecture: str
    max_position_embeddings: int
    num_kv_heads: int | None = None  # None: one for each query head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    has_qkv_bias: bool = False  # always
    has_qk_norm: bool = False
    flags: tuple[str, ...] = ()  # fields that may be true here, and mean nothing elsewhere
    windows_every_layer: bool = False  # sliding_window holds for all layers, or use_sliding_window chooses them


FAMILIES = {
    "llama": Family("LlamaForCausalLM", 2048, flags=("attention_bias", "mlp_bias")),
    "mistral": Family("MistralForCausalLM", 131_072, num_kv_heads=8, windows_every_layer=True),
    "qwen2": Family("Qwen2ForCausalLM", 32_768, num_kv_heads=32, has_qkv_bias=True, flags=("use_sliding_window",)),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        32_768,
        num_kv_heads=32,
        head_dim=128,
        has_qk_norm=True,
        flags=("attention_bias", "use_sliding_window"),
    ),
}
_ALL_FLAGS = sorted({flag for family in FAMILIES.values() for flag in family.flags})


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
    rope: RopeConfig
    max_position_embeddings: int  # the file's own; see max_context
    windows: tuple[int | None, ...]  # of each layer: keys that a query sees, itself included; None: all
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool  # an RMS norm of each query and key head, before they are rotated
    tie_word_embeddings: bool
    dtype: str  # the checkpoint's own
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    architecture: str

    @property
    def max_context(self) -> int:
        """Tokens of the longest sequence, with what rope scaling adds."""
        return max_context(self.rope, self.max_position_embeddings)

    @property
    def num_parameters(self) -> int:
        """Numbers of the checkpoint: tied embeddings count once."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        heads = qkv + self.num_heads * self.head_dim  # the output's columns, too
        layer = self.hidden_size * (heads + 3 * self.intermediate_size + 2)
        layer += self.qkv_bias * qkv + self.output_bias * self.hidden_size + self.qk_norm * 2 * self.head_dim
        layer += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


def load_model_config(path: str) -> ModelConfig:
    """Read ``path/config.json`` (and the end tokens of generation_config.json), or look up ``dummy:<shape>``.

    Raises:
        SpecError: a file is missing or corrupt, a field is missing or out of range, or the model needs something that
            the decoder does not have; the text names the file and the field.
    """
    if path.startswith(DUMMY):
        shape = DUMMY_SHAPES.get(path.removeprefix(DUMMY))
        if shape is None:
            raise SpecError(f"{path}: no such shape; known: {', '.join(DUMMY + name for name in DUMMY_SHAPES)}")
        return read_config(Fields(path, shape), ())
    folder = Path(path)
    if not folder.is_dir():
        raise SpecError(f"{path}: no such model directory")
    fields = read_fields(folder / "config.json")
    return read_config(fields, _end_tokens(folder, fields))


def read_config(fields: Fields, eos_token_ids: tuple[int, ...]) -> ModelConfig:
    """Read the fields of a config.json; see ``load_model_config``."""
    family = _read_family(fields)
    num_layers = fields.whole("num_hidden_layers", most=MAX_LAYERS)
    num_heads, num_kv_heads, head_dim = _read_heads(fields, family)
    max_position_embeddings = fields.whole("max_position_embeddings", family.max_position_embeddings)
    attention_bias, bos_token_id = fields.flag("attention_bias"), fields.get("bos_token_id")
    return ModelConfig(
        num_layers=num_layers,
        hidden_size=fields.whole("hidden_size"),
        intermediate_size=fields.whole("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.whole("vocab_size"),
        rms_norm_eps=fields.real("rms_norm_eps", 1e-6),
        rope=read_rope(fields, head_dim, max_position_embeddings),
        max_position_embeddings=max_position_embeddings,
        windows=_read_windows(fields, family, num_layers),
        qkv_bias=family.has_qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias"),
        qk_norm=family.has_qk_norm,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        dtype=_own_dtype(fields),
        eos_token_ids=eos_token_ids,
        bos_token_id=bos_token_id if isinstance(bos_token_id, int) else None,
        architecture=family.architecture,
    )


def _read_family(fields: Fields) -> Family:
    """The family, once nothing is left in the file that it would not compute."""
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        fields.refuse("model_type", model_type, f"is not supported; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    architectures = fields.get("architectures", [family.architecture])
    if architectures != [family.architecture]:
        fields.refuse("architectures", architectures, f"is not supported; supported: [{family.architecture!r}]")
    if fields.get("hidden_act", "silu") != "silu":
        fields.refuse("hidden_act", fields.get("hidden_act"), "is not supported; supported: 'silu'")
    unsupported = [
        "quantization_config",
        "compression_config",
        *(name for name in _ALL_FLAGS if name not in family.flags),
    ]
    if "use_sliding_window" not in family.flags:
        unsupported += ["layer_types"] if family.windows_every_layer else ["layer_types", "sliding_window"]
    for name in unsupported:
        if fields.get(name) not in (None, False):
            fields.refuse(name, fields.get(name), f"is not supported for model_type {model_type!r}")
    return family


def _read_heads(fields: Fields, family: Family) -> tuple[int, int, int]:
    """Query heads, KV heads and their size."""
    hidden_size, num_heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    default = num_heads if fields.given("num_key_value_heads", family.num_kv_heads) is None else family.num_kv_heads
    num_kv_heads = fields.whole("num_key_value_heads", default)
    if num_heads % num_kv_heads:
        fields.refuse("num_key_value_heads", num_kv_heads, f"does not divide num_attention_heads {num_heads}")
    if fields.get("head_dim", family.head_dim) is None and hidden_size % num_heads:
        fields.refuse("num_attention_heads", num_heads, f"does not divide hidden_size {hidden_size}")
    head_dim = fields.whole("head_dim", family.head_dim or hidden_size // num_heads)
    if head_dim % 2:
        fields.refuse("head_dim", head_dim, "must be even: rotary embedding turns pairs")
    return num_heads, num_kv_heads, head_dim


def _read_windows(fields: Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window. Mistral's default is 4096 where the field is left out; null means none."""
    chosen = fields.flag("use_sliding_window")
    window = None
    if (family.windows_every_layer or chosen) and fields.given("sliding_window", 4096) is not None:
        window = fields.whole("sliding_window", 4096)
    if not chosen and fields.get("layer_types") is None:
        return (window,) * num_layers
    layer_types = fields.get("layer_types")
    if layer_types is None:
        first = fields.whole("max_window_layers", 28, least=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return _read_layer_types(fields, layer_types, window, num_layers)


def _read_layer_types(fields: Fields, types: object, window: int | None, num_layers: int) -> tuple[int | None, ...]:
    if not isinstance(types, list) or len(types) != num_layers:
        fields.refuse("layer_types", types, f"must be a list of {num_layers}, one for each layer")
    for name in types:
        if name not in (FULL, SLIDING):
            fields.refuse("layer_types", types, f"has {name!r}; supported: {FULL}, {SLIDING}")
    if SLIDING in types and window is None:
        fields.refuse("layer_types", types, "has sliding_attention without use_sliding_window and a sliding_window")
    return tuple(window if name == SLIDING else None for name in types)


def _own_dtype(fields: Fields) -> str:
    """The checkpoint's dtype; a config that names none means float32, as in transformers."""
    dtype = fields.get("dtype", fields.get("torch_dtype", "float32"))
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    if name not in DTYPES:
        fields.refuse("dtype", dtype, f"is not supported; supported: {', '.join(DTYPES)}")
    return str(name)


def _end_tokens(folder: Path, fields: Fields) -> tuple[int, ...]:
    """End-of-sequence ids; generation_config.json goes before config.json, as in transformers."""
    source = fields
    generation = folder / "generation_config.json"
    if generation.exists():
        source = read_fields(generation)
        if source.get("eos_token_id") is None:
            source = fields
    value = source.get("eos_token_id", [])
    ids = value if isinstance(value, list) else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            source.refuse("eos_token_id", value, "must be a token id or a list of them")
    return tuple(ids)
