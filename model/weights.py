"""Loads a decoder's weights straight into the places where they are used: fused, in one dtype, one tensor at a time.

Knows which tensor of a checkpoint goes where; knows nothing of how the decoder computes with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from twinpool.core.errors import SpecError
from twinpool.model.checkpoint import Checkpoint
from twinpool.model.config import DTYPES, DUMMY, ModelConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer; H heads, K KV heads of size D, width C, inner width I."""

    input_norm: torch.Tensor  # [C]
    qkv: torch.Tensor  # [(H + 2 * K) * D, C]
    output: torch.Tensor  # [C, H * D]
    post_norm: torch.Tensor  # [C]
    gate_up: torch.Tensor  # [2 * I, C]
    down: torch.Tensor  # [C, I]


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole decoder; ``lm_head`` is ``embedding`` itself where the model ties them."""

    embedding: torch.Tensor  # [vocab, C]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [C]
    lm_head: torch.Tensor  # [vocab, C]


def load_weights(path: str, config: ModelConfig, dtype: str, device: str = "cpu") -> tuple[Weights, str]:
    """Load a Hugging Face directory, or make seeded random weights for ``dummy:<shape>``.

    Names, shapes and dtypes of all tensors are checked before the first is read, and the weights are allocated once:
    memory peaks at the weights plus one tensor.

    Args:
        dtype: of the weights, as ``choose_dtype`` gave it.

    Returns:
        The weights, and an identity that is equal wherever the same weights are loaded.

    Raises:
        SpecError: a file or tensor is missing, unexpected, corrupt or of the wrong shape; the text names both.
    """
    if path.startswith(DUMMY):
        weights = _allocate(config, dtype, device)
        for name, place in _places(config, weights):
            _fill_randomly(name, place)
        return weights, path
    checkpoint = Checkpoint(Path(path))
    _check(checkpoint, config)
    weights = _allocate(config, dtype, device)
    for name, place in _places(config, weights):
        checkpoint.read_into(name, place)
    return weights, checkpoint.identity()


def choose_dtype(path: str, config: ModelConfig, requested: str, device: str = "cpu") -> str:
    """What to compute in: ``auto`` is the checkpoint's own, which is never narrowed unless asked by name.

    Raises:
        SpecError: the dtype is unknown or the device cannot compute in it, or ``auto`` would narrow a tensor that is
            wider than config.json says.
    """
    if requested not in ("auto", *DTYPES):
        raise SpecError(f"model.dtype: {requested!r} is not one of auto, {', '.join(DTYPES)}")
    dtype = config.dtype if requested == "auto" else requested
    if dtype == "float16" and device == "cpu":
        raise SpecError("model.dtype: float16 is not supported on a CPU; ask for float32 or bfloat16")
    if requested == "auto" and not path.startswith(DUMMY):
        for name, entry in Checkpoint(Path(path)).entries.items():
            if entry.dtype != dtype and _BYTES[entry.dtype] >= _BYTES[dtype]:
                raise SpecError(
                    f"{entry.file}: {name} is {entry.dtype}, but config.json says {dtype}: set model.dtype to choose"
                )
    return dtype


def _allocate(config: ModelConfig, dtype: str, device: str) -> Weights:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=device)

    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    qkv = heads + 2 * config.num_kv_heads * config.head_dim
    layers = tuple(
        LayerWeights(
            input_norm=empty(width),
            qkv=empty(qkv, width),
            output=empty(width, heads),
            post_norm=empty(width),
            gate_up=empty(2 * inner, width),
            down=empty(width, inner),
        )
        for _ in range(config.num_layers)
    )
    embedding = empty(config.vocab_size, width)
    lm_head = embedding if config.tie_word_embeddings else empty(config.vocab_size, width)
    return Weights(embedding, layers, empty(width), lm_head)


def _places(config: ModelConfig, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor's name in a Llama checkpoint, and the memory it belongs in."""
    yield "model.embed_tokens.weight", weights.embedding
    yield "model.norm.weight", weights.final_norm
    if not config.tie_word_embeddings:
        yield "lm_head.weight", weights.lm_head
    kv = config.num_kv_heads * config.head_dim
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}."
        q, k, v = torch.split(layer.qkv, [config.num_heads * config.head_dim, kv, kv])
        gate, up = layer.gate_up.chunk(2)
        yield prefix + "input_layernorm.weight", layer.input_norm
        yield prefix + "self_attn.q_proj.weight", q
        yield prefix + "self_attn.k_proj.weight", k
        yield prefix + "self_attn.v_proj.weight", v
        yield prefix + "self_attn.o_proj.weight", layer.output
        yield prefix + "post_attention_layernorm.weight", layer.post_norm
        yield prefix + "mlp.gate_proj.weight", gate
        yield prefix + "mlp.up_proj.weight", up
        yield prefix + "mlp.down_proj.weight", layer.down


def _check(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuse a checkpoint that is not exactly this model, before any memory is taken."""
    where = checkpoint.files[0] if len(checkpoint.files) == 1 else checkpoint.folder
    expected = {name: tuple(place.shape) for name, place in _places(config, _allocate(config, "float32", "meta"))}
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
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _fill_randomly(name: str, place: torch.Tensor) -> None:
    """Norms of one; matrices whose outputs are about as large as their inputs. A function of name and shape."""
    if place.dim() == 1:
        place.fill_(1)
        return
    generator = torch.Generator(place.device).manual_seed(xxhash.xxh3_64_intdigest(name.encode()))
    place.normal_(0, place.shape[1] ** -0.5, generator=generator)
