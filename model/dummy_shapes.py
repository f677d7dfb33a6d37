"""The numbers of published models, as their config.json has them, for random weights of the same cost.

Knows no family: what the fields mean is read as from a file. Rope scaling is left out, as it changes no cost.
"""

from collections.abc import Mapping
from typing import Any

DUMMY = "dummy:"


def _shape(
    model_type: str, layers: int, width: tuple[int, int], heads: tuple[int, int, int], vocab: int, **more: Any
) -> Mapping[str, Any]:
    """A config.json without end tokens: random weights end an answer by length only, as benchmarks want it."""
    (hidden, inner), (num_heads, num_kv_heads, head_dim) = width, heads
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "dtype": "bfloat16",
        "rms_norm_eps": 1e-6 if model_type.startswith("qwen") else 1e-5,
        **more,
    }


_LLAMA = {"rope_theta": 500_000.0}
_QWEN = {"rope_theta": 1_000_000.0, "max_position_embeddings": 32_768}

DUMMY_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": _shape("llama", 4, (128, 352), (4, 2, 32), 512, **_LLAMA, max_position_embeddings=4096),
    "llama-3.2-1b": _shape(
        "llama",
        16,
        (2048, 8192),
        (32, 8, 64),
        128_256,
        **_LLAMA,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
    ),
    "llama-3-8b": _shape("llama", 32, (4096, 14_336), (32, 8, 128), 128_256, **_LLAMA, max_position_embeddings=8192),
    "llama-3-70b": _shape("llama", 80, (8192, 28_672), (64, 8, 128), 128_256, **_LLAMA, max_position_embeddings=8192),
    "mistral-7b": _shape(  # v0.1, the version with a sliding window
        "mistral", 32, (4096, 14_336), (32, 8, 128), 32_000, max_position_embeddings=32_768, sliding_window=4096
    ),
    "qwen2.5-0.5b": _shape("qwen2", 24, (896, 4864), (14, 2, 64), 151_936, **_QWEN, tie_word_embeddings=True),
    "qwen2.5-7b": _shape("qwen2", 28, (3584, 18_944), (28, 4, 128), 152_064, **_QWEN),
    "qwen3-0.6b": _shape(
        "qwen3",
        28,
        (1024, 3072),
        (16, 8, 128),
        151_936,
        **(_QWEN | {"max_position_embeddings": 40_960}),
        tie_word_embeddings=True,
    ),
}
