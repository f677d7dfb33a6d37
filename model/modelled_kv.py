"""The arithmetic of a modelled model: KV from tokens, and the next token from all of the KV.

Pure. Knows words and positions, not where they are stored: the runner reads them back from its pool, the oracle never
stores them, and both must name the same tokens. A token's KV depends on every token before it, and the next token on
every stored word and its position, so KV that is lost, stale, swapped or damaged changes the answer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinpool.core.sampling import SamplingParams
from twinpool.model.modelled_shape import ModelledShape

Words = NDArray[np.uint64]

WORD_MASK = 2**64 - 1
START_STATE = 0x9E3779B97F4A7C15  # before the first token; must not look like memory that was never written


def mix(words: Words) -> Words:
    """SplitMix64's finaliser: a bijection of 64-bit words in which every input bit moves every output bit."""
    mixed: Words = _splitmix(words)
    return mixed


def mix_one(word: int) -> int:
    """``mix`` of one word."""
    mixed: int = _splitmix(word)
    return mixed


def _splitmix(word: Any) -> Any:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD_MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD_MASK
    return word ^ (word >> 31)


def state_steps(token_ids: NDArray[np.integer], positions: NDArray[np.integer]) -> Words:
    """What each token adds (modulo 2^64) to the state of its sequence; both [T]. The state after a token is the sum."""
    high, low = positions.astype(np.uint64) << np.uint64(32), token_ids.astype(np.uint64)
    return mix(high ^ low ^ np.uint64(START_STATE))


def kv_words(states: Words, shape: ModelledShape) -> Words:
    """KV ``[T, num_layers, layer_words]`` of tokens with these states [T]; word 0 of layer 0 is the state itself."""
    offsets = _spread(shape.num_layers * shape.layer_words)
    offsets[0] = 0
    words = mix(states[:, None] ^ offsets)
    words[:, 0] = states
    return words.reshape(len(states), shape.num_layers, shape.layer_words)


def read_weights(first: int, end: int, shape: ModelledShape) -> Words:
    """Odd factors ``[end - first, num_layers, layer_words]`` of the words at positions [first, end).

    The digest of a context is the sum of words times factors, modulo 2^64: a single wrong word always changes it.
    """
    size = shape.num_layers * shape.layer_words
    factors = mix(np.arange(first * size, end * size, dtype=np.uint64) ^ np.uint64(START_STATE)) | np.uint64(1)
    return factors.reshape(end - first, shape.num_layers, shape.layer_words)


def choose_token(
    digest: int,
    sampling: SamplingParams,
    index: int,
    choice: int,
    vocab_size: int,
    forbidden_ids: tuple[int, ...] = (),
) -> int:
    """The next token after a context; a function of its digest and, unless greedy, of (seed, choice, index).

    A forbidden id gives way to the next one that is not. All else that sampling asks for changes nothing: a modelled
    model is always certain.
    """
    if sampling.temperature > 0:
        assert sampling.seed is not None
        digest ^= mix_one(sampling.seed ^ mix_one((choice << 32 | index) + 1))
    token_id = mix_one(digest) % vocab_size
    return next(
        (token_id + i) % vocab_size for i in range(vocab_size) if (token_id + i) % vocab_size not in forbidden_ids
    )


def oracle_tokens(
    shape: ModelledShape,
    token_ids: Sequence[int],
    sampling: SamplingParams,
    num_tokens: int,
    *,
    first_index: int = 0,
    choice: int = 0,
) -> list[int]:
    """The undisturbed continuation of ``token_ids`` by ``num_tokens``, end-of-sequence ids not heeded.

    ``first_index`` is the index in the answer of the first token returned (``Request.num_emitted``).
    """
    answer: list[int] = []
    state, digest, position = START_STATE, 0, 0
    fresh = np.asarray(token_ids, np.int64)
    for index in range(first_index, first_index + num_tokens):
        positions = np.arange(position, position + len(fresh))
        states = np.cumsum(state_steps(fresh, positions), dtype=np.uint64) + np.uint64(state)
        read = kv_words(states, shape) * read_weights(position, position + len(fresh), shape)
        state, position = int(states[-1]), position + len(fresh)
        digest = (digest + int(read.sum(dtype=np.uint64))) & WORD_MASK
        answer.append(choose_token(digest, sampling, index, choice, shape.vocab_size))
        fresh = np.array(answer[-1:], np.int64)
    return answer


def _spread(count: int) -> Words:
    return mix(np.arange(1, count + 1, dtype=np.uint64))
