"""The peer of `bench engine`: `generate` of the transformers library, as fast as its own options make it on a CPU.

Also makes checkpoints of the `dummy:` shapes, so that both sides read the same weights from the same files. Knows
nothing of our engine.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from twinpool.cluster.bench.generation import Generations
from twinpool.core.errors import Internal, SpecError
from twinpool.model.config import ModelConfig, load_model_config
from twinpool.model.dummy_shapes import DUMMY, DUMMY_SHAPES

WEIGHTS_SEED = 20_24
BIAS_STD = 0.02
_NOT_COMPARED = ("dtype", "bos_token_id", "eos_token_ids")


def import_transformers() -> Any:
    """The library, quiet. Raises SpecError where it is not installed."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        what = f"needs the transformers package to compare with: pip install 'transformers>=5' ({error})"
        raise SpecError(f"bench engine: {what}") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


class Peer:
    """A model of the library: KV cache, greedy, no end token, scaled-dot-product attention.

    Sets torch's thread count for the whole process.

    Args:
        path: a Hugging Face directory.
        dtype: the very dtype that our side computes in.

    Raises:
        SpecError: the library is absent, or does not know the model.
    """

    def __init__(self, path: str, dtype: str, threads: int) -> None:
        transformers = import_transformers()
        torch.set_num_threads(threads)
        try:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise SpecError(f"{path}: transformers cannot load it: {str(error).splitlines()[0]}") from None
        self._new_config = transformers.GenerationConfig

    def one_by_one(self, prompts: Sequence[list[int]], new_tokens: int) -> Generations:
        """Answer the prompts one after another."""
        started_s = time.perf_counter()
        answers = [self._generate([prompt], new_tokens)[0] for prompt in prompts]
        return Generations(answers, time.perf_counter() - started_s)

    def batched(self, prompts: Sequence[list[int]], new_tokens: int) -> Generations:
        """Answer prompts of one length in one batch: static batching, all begin and end together."""
        started_s = time.perf_counter()
        answers = self._generate(prompts, new_tokens)
        return Generations(answers, time.perf_counter() - started_s)

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        self._model.generation_config = self._new_config(
            max_new_tokens=new_tokens, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        ids = torch.tensor(prompts)  # [prompts, tokens]
        out = self._model.generate(ids, attention_mask=torch.ones_like(ids))
        answers: list[list[int]] = out[:, ids.shape[1] :].tolist()
        if any(len(answer) != new_tokens for answer in answers):
            raise Internal(f"transformers gave {[*map(len, answers)]} tokens where {new_tokens} were asked for")
        return answers


def write_dummy_checkpoint(shape: str, dtype: str, folder: Path) -> None:
    """Write a checkpoint of a `dummy:` shape, with seeded random weights, into an empty folder.

    Raises:
        SpecError: there is no such shape; Internal: transformers' model of that shape is not ours.
    """
    ours = load_model_config(shape)
    model = _random_model(DUMMY_SHAPES[shape.removeprefix(DUMMY)], dtype)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    theirs = load_model_config(str(folder))
    names = [item.name for item in fields(ModelConfig) if item.name not in _NOT_COMPARED]
    if wrong := [name for name in names if getattr(ours, name) != getattr(theirs, name)]:
        raise Internal(f"{shape}: transformers' model differs in {', '.join(wrong)}")


def _random_model(values: Mapping[str, Any], dtype: str) -> Any:
    """A model of the library; each matrix gives outputs about as large as its inputs, so that logits are well apart."""
    transformers = import_transformers()
    no_ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # random weights never mean an end
    others = {name: value for name, value in values.items() if name not in ("model_type", "dtype")}
    config = transformers.AutoConfig.for_model(values["model_type"], **others, **no_ends)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(WEIGHTS_SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
            elif name.endswith(".bias"):
                weight.normal_(0, BIAS_STD, generator=generator)
    return model
