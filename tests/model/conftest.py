"""Builders that the tests of model/ share: small Llama checkpoints on disk, and a hand-driven runner."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.model.batch import Batch, SampleRow, ScoreRow
from twinpool.model.runner import TorchRunner

GREEDY = SamplingParams(temperature=0.0)

torch.set_num_threads(1)


def llama_config(**changes: Any) -> dict[str, Any]:
    """A small config.json in the new spelling."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 131,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {name: value for name, value in (config | changes).items() if value is not ...}


def llama_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights whose logits are well apart."""
    width, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (width,),
            "self_attn.q_proj": (heads, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, heads),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["dtype"])
    return {
        name: (
            torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        ).to(dtype)
        for name, shape in shapes.items()
    }


@pytest.fixture
def write_llama(tmp_path: Path) -> Callable[..., Path]:
    """``write_llama(seed=0, **config) -> folder`` with config.json and model.safetensors."""

    def write(seed: int = 0, **changes: Any) -> Path:
        config = llama_config(**changes)
        folder = tmp_path / f"llama{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(llama_tensors(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., str]:
    """``write_config(**config) -> folder`` with a config.json alone; ``...`` leaves a field out."""

    def write(**changes: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(llama_config(**changes)))
        return str(tmp_path)

    return write


@dataclass
class Driven:
    """One sequence as a test drives it: its tokens so far, and the blocks they may use."""

    tokens: list[int]
    table: list[int]
    sampling: SamplingParams = GREEDY
    computed: int = 0
    answer: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # of the answer
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def num_prompt(self) -> int:
        return len(self.tokens) - len(self.answer)

    def sample_row(self, row: int, eos_token_ids: tuple[int, ...]) -> SampleRow:
        is_early = len(self.answer) < self.sampling.min_tokens
        forbidden = self.sampling.stop_token_ids + eos_token_ids if is_early else ()
        return SampleRow(row, self.sampling, len(self.answer), 0, self.tokens, forbidden)

    def score_rows(self, row: int, count: int) -> list[ScoreRow]:
        """Before the next ``count`` tokens are computed: the prompt's tokens that follow them."""
        targets = tuple(self.tokens[self.computed + 1 : self.num_prompt][:count])
        num_top = self.sampling.prompt_logprobs
        return [ScoreRow(row, targets, num_top)] if targets and num_top is not None else []


class Driver:
    """Runs steps on a runner with hand-made tables; a step takes ``(sequence, how many tokens)`` pairs."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner

    def sequence(self, tokens: Sequence[int], table: Sequence[int], sampling: SamplingParams = GREEDY) -> Driven:
        return Driven(list(tokens), list(table), sampling)

    def step(self, *work: tuple[Driven, int], on_layers: Callable[[int, int], None] | None = None) -> None:
        """Compute the next tokens of each sequence; whoever is then complete samples its next token."""
        news = [s.tokens[s.computed : s.computed + count] for s, count in work]
        scores = [score for row, (s, count) in enumerate(work) for score in s.score_rows(row, count)]
        for (sequence, _), new in zip(work, news, strict=True):
            sequence.computed += len(new)
        eos = self.runner.eos_token_ids
        samples = [s.sample_row(row, eos) for row, (s, _) in enumerate(work) if s.computed == len(s.tokens)]
        batch = Batch(
            token_ids=np.concatenate(news).astype(np.int64),
            cu_seqlens=np.cumsum([0, *map(len, news)]).astype(np.int32),
            context_lens=np.array([s.computed for s, _ in work], dtype=np.int32),
            block_tables=tuple(np.array(s.table, dtype=np.int64) for s, _ in work),
            samples=tuple(samples),
            scores=tuple(scores),
        )
        result = self.runner.run(batch, on_layers)
        for score, logprobs in zip(scores, result.scores, strict=True):
            work[score.row][0].prompt_logprobs += logprobs
        for sample, token, one in zip(samples, result.token_ids.tolist(), result.logprobs, strict=True):
            sequence = work[sample.row][0]
            sequence.tokens.append(token)
            sequence.answer.append(token)
            sequence.logprobs.append(one)

    def answer(self, sequence: Driven, count: int, chunk: int = 10**9) -> list[int]:
        """Generate alone until the answer has ``count`` tokens."""
        while len(sequence.answer) < count:
            self.step((sequence, min(chunk, len(sequence.tokens) - sequence.computed)))
        return sequence.answer


@pytest.fixture
def load_driver() -> Callable[..., Driver]:
    """``load_driver(path, **options) -> Driver`` of a small TorchRunner."""

    def load(path: Path | str, **options: Any) -> Driver:
        defaults: dict[str, Any] = {"max_model_len": 256, "kv_bytes": 1 << 21, "block_tokens": 8}
        return Driver(TorchRunner.load(str(path), **(defaults | options)))

    return load
