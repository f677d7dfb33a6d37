"""A runner that takes as long as a GPU would and moves real KV, small, so that a cluster runs on a laptop's cores.

Knows blocks and time: no torch, no weights, no peer. What it computes is in model/modelled_kv.py.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from twinpool.core.errors import SpecError
from twinpool.core.sampling import TokenLogprobs
from twinpool.model.array_kv_cache import ArrayKVCache
from twinpool.model.batch import Batch, OnLayers, StepResult
from twinpool.model.kv_layout import KVCache, KVLayout
from twinpool.model.layer_groups import choose_layer_groups, group_ranges
from twinpool.model.modelled_kv import (
    START_STATE,
    WORD_MASK,
    Words,
    choose_token,
    kv_words,
    read_weights,
    state_steps,
)
from twinpool.model.modelled_shape import ModelledShape, modelled_shape

_WORD_BYTES = 8


def load_modelled(
    path: str, *, max_model_len: int, kv_bytes: int, block_tokens: int, shared_kv: bool = False
) -> "ModelledRunner":
    """The runner of ``modelled:<name>``, on the machine's own clock.

    Raises:
        SpecError: no such name, or ``kv_bytes`` hold no block, or cannot be had.
    """
    return ModelledRunner(
        modelled_shape(path),
        model=path,
        max_model_len=max_model_len,
        kv_bytes=kv_bytes,
        block_tokens=block_tokens,
        shared_kv=shared_kv,
    )


class ModelledRunner:
    """See ``twinpool.model.batch.Runner``."""

    def __init__(
        self,
        shape: ModelledShape,
        *,
        model: str,
        max_model_len: int,
        kv_bytes: int,
        block_tokens: int,
        shared_kv: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        layout = KVLayout(shape.num_layers, shape.num_kv_heads, block_tokens, shape.head_dim, "float32", model)
        num_blocks = kv_bytes // layout.block_bytes
        if num_blocks < 1:
            raise SpecError(f"{model}: {kv_bytes} bytes of KV memory hold no block of {layout.block_bytes} bytes")
        cache = ArrayKVCache(layout, num_blocks, shared=shared_kv)
        self.cache: KVCache = cache
        self.vocab_size = shape.vocab_size
        self.max_model_len = max_model_len
        self.eos_token_ids = shape.eos_token_ids
        self.layer_groups = shape.layer_groups or choose_layer_groups(shape.num_layers, layout.block_layer_bytes)
        self._shape = shape
        self._clock = clock
        self._sleep = sleep
        # The pool as words [num_blocks, num_layers, 2 * num_kv_heads, block_tokens, head_dim words], and the factors of
        # a sequence's blocks, from its start, in the same order.
        words = cache.bytes.view(np.uint64)
        head_words = layout.head_dim * 4 // _WORD_BYTES
        self._words = words.reshape(*words.shape[:2], 2 * layout.num_kv_heads, block_tokens, head_words)
        self._weights = self._words[:0]

    def run(self, batch: Batch, on_layers: OnLayers | None = None) -> StepResult:
        """Write the batch's KV, take the time that would take, group by group, and sample from what is stored.

        ``on_layers`` is called when a group's share of the time is over.
        """
        started_s, step_s = self._clock(), self._shape.latency.step_s(np.diff(batch.cu_seqlens), batch.context_lens)
        positions, block_ids = _locate(batch, self.cache.layout.block_tokens)
        slots = positions % self.cache.layout.block_tokens
        fresh = kv_words(self._states(batch, positions), self._shape)
        fresh = fresh.reshape(len(fresh), *self._words.shape[1:3], self._words.shape[4])
        token_ids = np.empty(0, np.int64)
        num_layers = self._shape.num_layers
        for first, end in group_ranges(self.layer_groups):
            self._words[block_ids, first:end, :, slots] = fresh[:, first:end]
            if end == num_layers:
                token_ids = self._sample(batch)
            self._sleep_until(started_s + step_s * end / num_layers)
            if on_layers is not None:
                on_layers(first, end)
        return StepResult(
            token_ids,
            tuple(
                None if sample.sampling.logprobs is None else _certain(token_id)
                for sample, token_id in zip(batch.samples, token_ids.tolist(), strict=True)
            ),
            tuple(tuple(_certain(token_id) for token_id in score.targets) for score in batch.scores),
        )

    def _states(self, batch: Batch, positions: NDArray[np.int64]) -> Words:
        """State of each of the batch's tokens [T]: what is stored of its sequence, and what tokens since then add."""
        starts = batch.cu_seqlens[:-1]
        new_tokens = np.diff(batch.cu_seqlens)
        sums = np.cumsum(state_steps(batch.token_ids, positions), dtype=np.uint64)
        before = np.concatenate([np.zeros(1, np.uint64), sums])[starts]
        stored = np.array([self._stored_state(batch, row) for row in range(batch.num_sequences)], np.uint64)
        states: Words = sums + np.repeat(stored - before, new_tokens)
        return states

    def _stored_state(self, batch: Batch, row: int) -> int:
        """State after the last token whose KV was there before this step."""
        first, end = batch.cu_seqlens[row : row + 2]
        num_stored = int(batch.context_lens[row]) - int(end - first)
        if num_stored == 0:
            return START_STATE
        block, slot = divmod(num_stored - 1, self.cache.layout.block_tokens)
        return int(self._words[batch.block_tables[row][block], 0, 0, slot, 0])

    def _sample(self, batch: Batch) -> NDArray[np.int64]:
        rows = {sample.row for sample in batch.samples}
        digests = {row: self._digest(batch.block_tables[row], int(batch.context_lens[row])) for row in rows}
        return np.array(
            [
                choose_token(
                    digests[sample.row],
                    sample.sampling,
                    sample.index,
                    sample.choice,
                    self.vocab_size,
                    sample.forbidden_ids,
                )
                for sample in batch.samples
            ],
            np.int64,
        )

    def _digest(self, block_table: NDArray[np.int64], num_tokens: int) -> int:
        """Digest of a context as it is stored: every word of every token, read through the block table."""
        num_full, num_rest = divmod(num_tokens, self.cache.layout.block_tokens)
        weights = self._weights_of(num_full + 1)
        stored = self._words[block_table[:num_full]]
        digest = int(np.vdot(stored, weights[:num_full]))
        if num_rest:
            last = self._words[block_table[num_full], ..., :num_rest, :] * weights[num_full, ..., :num_rest, :]
            digest += int(last.sum(dtype=np.uint64))
        return digest & WORD_MASK

    def _weights_of(self, num_blocks: int) -> Words:
        """Factors of a sequence's first blocks, in the pool's order; grown by doubling."""
        if num_blocks > len(self._weights):
            size = max(num_blocks, 2 * len(self._weights))
            _, num_layers, heads, block_tokens, head_words = self._words.shape
            by_position = read_weights(0, size * block_tokens, self._shape)
            by_position = by_position.reshape(size, block_tokens, num_layers, heads, head_words)
            self._weights = np.ascontiguousarray(by_position.transpose(0, 2, 3, 1, 4))
        return self._weights

    def _sleep_until(self, deadline_s: float) -> None:
        remaining_s = deadline_s - self._clock()
        if remaining_s > 0:
            self._sleep(remaining_s)


def _certain(token_id: int) -> TokenLogprobs:
    """A modelled model never hesitates."""
    return TokenLogprobs(token_id, 0.0)


def _locate(batch: Batch, block_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Position of each of the batch's tokens in its sequence, and the block that takes its KV; both [T]."""
    ends = batch.context_lens.astype(np.int64)
    starts = ends - np.diff(batch.cu_seqlens)
    positions = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    blocks = [table[index // block_tokens] for table, index in zip(batch.block_tables, positions, strict=True)]
    return np.concatenate(positions), np.concatenate(blocks)
