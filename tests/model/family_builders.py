"""Tiny random checkpoints of every family, made and saved by transformers, and what transformers answers with them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinpool.kernels.paged_attention import plan_attention
from twinpool.model.config import load_model_config
from twinpool.model.decoder import Decoder
from twinpool.model.rope import make_rotary
from twinpool.model.weights import load_weights

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
BLOCK_TOKENS = 8


def save_family(folder: Path, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """Save a checkpoint whose every tensor is random, biases and norms too, so that none can be forgotten."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SMALL | changes)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            noise *= 2 * parameter.shape[-1] ** -0.5
        elif name.endswith("norm.weight"):
            noise = 1 + 0.3 * noise
        else:
            noise *= 0.3
        parameter.data.copy_(noise)
    model.save_pretrained(folder)
    return folder


def load_peer(folder: Path, dtype: str = "float32") -> Any:
    """The same checkpoint in transformers, fresh: dynamic scaling remembers the longest sequence it has seen."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


@torch.inference_mode()
def generate_with_peer(folder: Path, ids: list[int], count: int) -> list[int]:
    """Greedy tokens of transformers' ``generate``."""
    whole = torch.tensor([ids])
    made = load_peer(folder).generate(
        whole, attention_mask=torch.ones_like(whole), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return list(map(int, made[0, len(ids) :]))


@torch.inference_mode()
def compute_logits(folder: Path, ids: list[int], chunk: int, dtype: str = "float32") -> torch.Tensor:
    """Our logits at every position ``[T, vocab]``, through a paged pool that held NaN, ``chunk`` tokens a step."""
    config = load_model_config(str(folder))
    weights, _ = load_weights(str(folder), config, dtype)
    decoder = Decoder(config, weights, make_rotary(config, len(ids), getattr(torch, dtype)))
    table = np.arange(-(-len(ids) // BLOCK_TOKENS))[::-1].copy()
    shape = (len(table), config.num_layers, 2, config.num_kv_heads, BLOCK_TOKENS, config.head_dim)
    pool, rows = torch.full(shape, torch.nan, dtype=getattr(torch, dtype)), []
    for start in range(0, len(ids), chunk):
        new = ids[start : start + chunk]
        bounds, contexts = np.array([0, len(new)], np.int32), np.array([start + len(new)], np.int32)
        plan = plan_attention(bounds, contexts, [table], pool, config.num_heads, config.windows)
        rows.append(decoder.logits(decoder.compute(torch.tensor(new), pool, plan)))
    return torch.cat(rows)
