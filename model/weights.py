"""Loads a decoder's weights: reads, fuses and packs one matrix after another, so that little is ever held twice.

Knows where a tensor comes from and what it is fused with; knows nothing of how the decoder computes with it.
"""

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from twinpool.core.errors import SpecError
from twinpool.kernels.linear import Arithmetic, Linear, make_linear
from twinpool.model.checkpoint import Checkpoint
from twinpool.model.checkpoint_layout import EMBEDDING, FINAL_NORM, LM_HEAD, Fused, check_checkpoint, lay_out_layer
from twinpool.model.config import DTYPES, ModelConfig
from twinpool.model.dummy_shapes import DUMMY

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_BIAS_SCALE = 0.1  # of random biases


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer; H heads, K KV heads of size D, width C, inner width I."""

    input_norm: torch.Tensor  # [C]
    qkv: Linear  # C to (H + 2 * K) * D
    qk_norm: torch.Tensor | None  # [H + K, D]: the same row for each query head, and another for each key head
    output: Linear  # H * D to C
    post_norm: torch.Tensor  # [C]
    gate_up: Linear  # C to 2 * I
    down: Linear  # I to C


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole decoder; ``lm_head`` is made of ``embedding`` where the model ties them."""

    embedding: torch.Tensor  # [vocab, C]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [C]
    lm_head: Linear  # C to vocab


def load_weights(
    path: str, config: ModelConfig, dtype: str, device: str = "cpu", arithmetic: Arithmetic = Arithmetic.FAST
) -> tuple[Weights, str]:
    """Load a Hugging Face directory, or make seeded random weights for ``dummy:<shape>``.

    Names, shapes and dtypes of all tensors are checked before the first is read. Memory peaks at the weights kept plus
    the largest fused matrix.

    Args:
        dtype: of the weights, as ``choose_dtype`` gave it.
        arithmetic: how the matrix products are done; what is kept of a matrix follows from it.

    Returns:
        The weights, and an identity that is equal wherever the same weights are loaded for the same arithmetic.

    Raises:
        SpecError: a file or tensor is missing, unexpected, corrupt or of the wrong shape; the text names both.
    """
    if path.startswith(DUMMY):
        loader, identity = _Loader(_fill_randomly, dtype, device, arithmetic), path
    else:
        checkpoint = Checkpoint(Path(path))
        check_checkpoint(checkpoint, config)
        loader, identity = _Loader(checkpoint.read_into, dtype, device, arithmetic), checkpoint.identity()
    if arithmetic is Arithmetic.INT8:
        identity += ":int8"  # rounded weights make other keys and values
    return loader.load(config), identity


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


def choose_arithmetic(deterministic: bool, quantization: str) -> Arithmetic:
    """How a cluster file asks for matrix products.

    Raises:
        SpecError: the quantization is unknown, or cannot be deterministic.
    """
    if quantization not in ("none", "int8"):
        raise SpecError(f"model.quantization: {quantization!r} is not one of none, int8")
    if deterministic and quantization == "int8":
        raise SpecError("model.quantization: int8 cannot be had with deterministic: true")
    if deterministic:
        return Arithmetic.DETERMINISTIC
    return Arithmetic.INT8 if quantization == "int8" else Arithmetic.FAST


@dataclass(frozen=True, slots=True)
class _Loader:
    """Fills memory with named tensors, and turns it into what the decoder computes with."""

    fill: Callable[[str, torch.Tensor], None]  # writes the tensor of this name into that memory
    dtype: str
    device: str
    arithmetic: Arithmetic

    def load(self, config: ModelConfig) -> Weights:
        """The largest matrices come first, while little else is held."""
        embedding = head = self._read(EMBEDDING, config.vocab_size, config.hidden_size)
        if not config.tie_word_embeddings:
            head = self._read(LM_HEAD, config.vocab_size, config.hidden_size)
        # Packing copies, so a tied head is held twice: for steps of few rows it is computed about twice as fast.
        lm_head = make_linear(head, None, self.arithmetic)
        del head
        layers = tuple(self._load_layer(config, index) for index in range(config.num_layers))
        return Weights(embedding, layers, self._read(FINAL_NORM, config.hidden_size), lm_head)

    def _load_layer(self, config: ModelConfig, index: int) -> LayerWeights:
        layout = lay_out_layer(config, index)
        qk_norm = None
        if layout.q_norm is not None and layout.k_norm is not None:
            q_norm, k_norm = (self._read(name, config.head_dim) for name in (layout.q_norm, layout.k_norm))
            qk_norm = torch.cat((q_norm.expand(config.num_heads, -1), k_norm.expand(config.num_kv_heads, -1)))
        return LayerWeights(
            input_norm=self._read(layout.input_norm, config.hidden_size),
            qkv=self._fuse(layout.qkv),
            qk_norm=qk_norm,
            output=self._fuse(layout.output),
            post_norm=self._read(layout.post_norm, config.hidden_size),
            gate_up=self._fuse(layout.gate_up),
            down=self._fuse(layout.down),
        )

    def _fuse(self, fused: Fused) -> Linear:
        """Read all parts into one matrix, and pack it; whatever packing leaves behind is dropped on return."""
        weight_OC = self._empty(sum(fused.rows), fused.columns)
        bias_O = self._empty(sum(fused.rows)) if fused.has_bias else None
        first = 0
        for module, rows in zip(fused.modules, fused.rows, strict=True):
            self.fill(f"{module}.weight", weight_OC[first : first + rows])
            if bias_O is not None:
                self.fill(f"{module}.bias", bias_O[first : first + rows])
            first += rows
        return make_linear(weight_OC, bias_O, self.arithmetic)

    def _read(self, name: str, *shape: int) -> torch.Tensor:
        place = self._empty(*shape)
        self.fill(name, place)
        return place

    def _empty(self, *shape: int) -> torch.Tensor:
        """Memory to read into. A matrix gets pages of its own on a CPU: holes that packing leaves in a heap add up."""
        dtype = getattr(torch, self.dtype)
        if self.device != "cpu" or len(shape) == 1:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def _fill_randomly(name: str, place: torch.Tensor) -> None:
    """Norms of one, small biases, and matrices whose outputs are about as large as their inputs.

    A function of name and shape.
    """
    if name.endswith("norm.weight"):
        place.fill_(1)
        return
    generator = torch.Generator(place.device).manual_seed(xxhash.xxh3_64_intdigest(name.encode()))
    scale = _BIAS_SCALE if place.dim() == 1 else place.shape[1] ** -0.5
    place.normal_(0, scale, generator=generator)
