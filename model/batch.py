"""What one engine step computes, and the protocol of what computes it.

Flat (packed) batches with no padding, as in Prepacking. Knows numpy, not torch, so that policies, the modelled runner
and the simulator can share it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.model.kv_layout import KVCache

OnLayers = Callable[[int, int], None]

NO_TOKEN = -1  # sampled where the logits are not finite; only that request fails


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One token to sample: from the logits of the last query of ``row``, as token ``index`` of its answer."""

    row: int
    sampling: SamplingParams  # seed is set
    index: int  # position in the answer, from 0: the counter of the noise
    choice: int = 0
    context: Sequence[int] = ()  # all tokens so far, the prompt's and the answer's; the last `index` are the answer's
    forbidden_ids: tuple[int, ...] = ()  # may not be chosen now


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Prompt tokens to score: the first new tokens of sequence ``row`` say how probable ``targets`` are."""

    row: int
    targets: tuple[int, ...]  # targets[i] follows the sequence's new token i in the prompt
    num_top: int


@dataclass(frozen=True, slots=True)
class Batch:
    """S sequences' new tokens, one after another: T tokens in all.

    ``cu_seqlens[s]:cu_seqlens[s + 1]`` are sequence s's rows in ``token_ids``; they are its tokens
    ``[context_lens[s] - n, context_lens[s])``, whose KV this step writes into ``block_tables[s]``.
    """

    token_ids: NDArray[np.int64]  # [T]
    cu_seqlens: NDArray[np.int32]  # [S + 1]
    context_lens: NDArray[np.int32]  # [S] tokens whose KV exists after this step
    block_tables: tuple[NDArray[np.int64], ...]  # S arrays, each of at least ceil(context_len / block_tokens) ids
    samples: tuple[SampleRow, ...]
    scores: tuple[ScoreRow, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step found: Q sampled rows, and the prompt tokens that it was asked to score."""

    token_ids: NDArray[np.int64]  # [Q] sampled, or NO_TOKEN
    logprobs: tuple[TokenLogprobs | None, ...]  # Q: of the sampled tokens; None where not asked for, or no token
    scores: tuple[tuple[TokenLogprobs, ...], ...] = ()  # one for each of ``batch.scores``


class Runner(Protocol):
    """Runs batches on one device. Called by the engine thread only, but for ``cache``."""

    cache: KVCache
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    layer_groups: tuple[int, ...]  # their ends, the last that of the layers; others may be set between two steps

    def run(self, batch: Batch, on_layers: OnLayers | None = None) -> StepResult:
        """Compute one step, sample a token for each of ``batch.samples``, and score ``batch.scores``.

        ``on_layers(first, end)`` is called as soon as the KV of layers ``[first, end)`` is written for the whole batch,
        in order, one group of ``layer_groups`` at a time; the caller may hand those bytes to a link at once.
        """
        ...
