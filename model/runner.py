"""Runs packed batches on one CPU with torch: loads a model, owns its KV memory, computes a step, samples its tokens.

Knows what a Batch says and nothing of requests, block ownership or peers.
"""

from collections.abc import Callable
from itertools import islice

import numpy as np
import torch

from twinpool.core.errors import SpecError
from twinpool.core.sampling import TokenLogprobs
from twinpool.kernels.linear import UnstableOrderError
from twinpool.kernels.paged_attention import plan_attention
from twinpool.model.batch import Batch, OnLayers, StepResult
from twinpool.model.config import load_model_config
from twinpool.model.decoder import Decoder
from twinpool.model.kv_cache import TorchKVCache, count_blocks
from twinpool.model.kv_layout import KVCache, KVLayout
from twinpool.model.layer_groups import choose_layer_groups, group_ranges
from twinpool.model.logprobs import Wanted, logprobs_in_slices
from twinpool.model.rope import make_rotary
from twinpool.model.sampling import sample, sampled_logprobs
from twinpool.model.weights import choose_arithmetic, choose_dtype, load_weights


class TorchRunner:
    """The Runner protocol over a Decoder and a TorchKVCache. One thread calls ``run``; any thread may use ``cache``."""

    def __init__(
        self,
        decoder: Decoder,
        cache: TorchKVCache,
        max_model_len: int,
        layer_groups: tuple[int, ...],
        deterministic: bool = False,
    ) -> None:
        self.cache: KVCache = cache
        self._pool = cache.tensor
        self.config = decoder.config
        self.vocab_size = decoder.config.vocab_size
        self.max_model_len = max_model_len
        self.eos_token_ids = decoder.config.eos_token_ids
        self.layer_groups = layer_groups
        self._decoder = decoder
        self._deterministic = deterministic

    @classmethod
    def load(
        cls,
        path: str,
        *,
        max_model_len: int,
        kv_bytes: int,
        block_tokens: int,
        dtype: str = "auto",
        threads: int = 1,
        deterministic: bool = False,
        quantization: str = "none",
        layer_groups: tuple[int, ...] = (),
        shared_kv: bool = False,
    ) -> "TorchRunner":
        """Load a Hugging Face directory or ``dummy:<shape>``.

        Sets torch's thread count for the whole process. The KV memory is ``kv_bytes`` rounded down to whole blocks.
        Layer groups whose ends are not given are chosen for a step of one block.

        Raises:
            SpecError: the model cannot be loaded as asked, or the memory does not hold one block. Names what and where.
        """
        torch.set_num_threads(threads)
        config = load_model_config(path)
        dtype = choose_dtype(path, config, dtype)
        arithmetic = choose_arithmetic(deterministic, quantization)
        try:
            weights, identity = load_weights(path, config, dtype, arithmetic=arithmetic)
        except UnstableOrderError as error:
            raise SpecError(f"model.deterministic: {error}") from error
        layout = KVLayout(config.num_layers, config.num_kv_heads, block_tokens, config.head_dim, dtype, identity)
        cache = TorchKVCache(layout, count_blocks(layout, kv_bytes), shared=shared_kv)
        rotary = make_rotary(config, max_model_len, weights.embedding.dtype)
        decoder = Decoder(config, weights, rotary, deterministic)
        groups = layer_groups or choose_layer_groups(config.num_layers, layout.block_layer_bytes)
        return cls(decoder, cache, max_model_len, groups, deterministic)

    @torch.inference_mode()
    def run(self, batch: Batch, on_layers: OnLayers | None = None) -> StepResult:
        """Compute one step; see ``Runner.run``.

        An id is ``NO_TOKEN`` where that row's logits were not finite.

        Raises:
            ValueError, IndexError: the batch contradicts itself or names a token, block or position that does not
                exist. Nothing was written.
        """
        plan = plan_attention(
            batch.cu_seqlens,
            batch.context_lens,
            batch.block_tables,
            self._pool,
            self.config.num_heads,
            self.config.windows,
            self._deterministic,
        )
        on_written = None if on_layers is None else self._by_group(on_layers)
        hidden_TC = self._decoder.compute(torch.from_numpy(batch.token_ids), self._pool, plan, on_written)
        scores = self._score(hidden_TC, batch)
        if not batch.samples:
            return StepResult(np.empty(0, dtype=np.int64), (), scores)
        last_rows = batch.cu_seqlens[[row.row + 1 for row in batch.samples]] - 1
        logits_QV = self._decoder.logits(hidden_TC[torch.from_numpy(last_rows.astype(np.int64))])
        token_ids = sample(logits_QV, batch.samples).numpy()
        return StepResult(token_ids, sampled_logprobs(logits_QV, batch.samples, token_ids.tolist()), scores)

    def _score(self, hidden_TC: torch.Tensor, batch: Batch) -> tuple[tuple[TokenLogprobs, ...], ...]:
        """How probable the prompt tokens of ``batch.scores`` are; logits exist for a slice of them at a time."""
        wanted = [
            Wanted(int(batch.cu_seqlens[score.row]) + i, target, score.num_top)
            for score in batch.scores
            for i, target in enumerate(score.targets)
        ]
        found = iter(logprobs_in_slices(wanted, lambda at_S: self._decoder.logits(hidden_TC[at_S])))
        return tuple(tuple(islice(found, len(score.targets))) for score in batch.scores)

    def _by_group(self, on_layers: OnLayers) -> Callable[[int], None]:
        """Turn layers, one after another, into the groups of ``layer_groups``."""
        first_of = {end: first for first, end in group_ranges(self.layer_groups)}

        def on_written(layer: int) -> None:
            first = first_of.get(layer + 1)
            if first is not None:
                on_layers(first, layer + 1)

        return on_written
