"""Says which tensors a checkpoint of a model must hold, of which shapes, and which of them are fused into one product.

Knows the names that all families share; opens no file and computes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from twinpool.core.errors import SpecError
from twinpool.model.checkpoint import Checkpoint
from twinpool.model.config import ModelConfig

EMBEDDING, FINAL_NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Fused:
    """Matrices of a checkpoint that are multiplied by the same rows, stacked in this order."""

    modules: tuple[str, ...]  # ``<module>.weight`` and, where there is one, ``<module>.bias``
    rows: tuple[int, ...]  # of each
    columns: int
    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One layer's tensors; the norms are names of vectors."""

    input_norm: str
    qkv: Fused
    q_norm: str | None
    k_norm: str | None
    output: Fused
    post_norm: str
    gate_up: Fused
    down: Fused


def lay_out_layer(config: ModelConfig, index: int) -> LayerLayout:
    """Names and shapes of one layer."""
    layer = f"model.layers.{index}."
    attention, mlp = layer + "self_attn.", layer + "mlp."
    width, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    qkv = (attention + "q_proj", attention + "k_proj", attention + "v_proj")
    return LayerLayout(
        input_norm=layer + "input_layernorm.weight",
        qkv=Fused(qkv, (q_rows, kv_rows, kv_rows), width, config.qkv_bias),
        q_norm=attention + "q_norm.weight" if config.qk_norm else None,
        k_norm=attention + "k_norm.weight" if config.qk_norm else None,
        output=Fused((attention + "o_proj",), (width,), q_rows, config.output_bias),
        post_norm=layer + "post_attention_layernorm.weight",
        gate_up=Fused((mlp + "gate_proj", mlp + "up_proj"), (inner, inner), width, config.mlp_bias),
        down=Fused((mlp + "down_proj",), (width,), inner, config.mlp_bias),
    )


def list_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the checkpoint must hold."""
    yield EMBEDDING, (config.vocab_size, config.hidden_size)
    yield FINAL_NORM, (config.hidden_size,)
    if not config.tie_word_embeddings:
        yield LM_HEAD, (config.vocab_size, config.hidden_size)
    for index in range(config.num_layers):
        layer = lay_out_layer(config, index)
        yield layer.input_norm, (config.hidden_size,)
        yield layer.post_norm, (config.hidden_size,)
        for norm in (layer.q_norm, layer.k_norm):
            if norm is not None:
                yield norm, (config.head_dim,)
        for fused in (layer.qkv, layer.output, layer.gate_up, layer.down):
            for module, rows in zip(fused.modules, fused.rows, strict=True):
                yield f"{module}.weight", (rows, fused.columns)
                if fused.has_bias:
                    yield f"{module}.bias", (rows,)


def check_checkpoint(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuse a checkpoint that is not exactly this model, before any memory is taken.

    Raises:
        SpecError: a tensor is missing, unexpected or of another shape; the text names file and tensor.
    """
    where = checkpoint.files[0] if len(checkpoint.files) == 1 else checkpoint.folder
    expected = dict(list_tensors(config))
    for name, shape in expected.items():
        entry = checkpoint.entries.get(name)
        if entry is None:
            raise SpecError(f"{where}: {name} is missing")
        if entry.shape != shape:
            raise SpecError(f"{entry.file}: {name} has shape {list(entry.shape)}; config.json means {list(shape)}")
    for name, entry in checkpoint.entries.items():
        if name not in expected and not _is_redundant(name, config):
            raise SpecError(f"{entry.file}: {name} is not a tensor of {config.architecture}")


def _is_redundant(name: str, config: ModelConfig) -> bool:
    """Tensors that old checkpoints carry though they follow from others."""
    return name.endswith(".rotary_emb.inv_freq") or (name == LM_HEAD and config.tie_word_embeddings)
