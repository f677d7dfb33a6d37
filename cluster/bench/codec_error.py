"""How much a codec changes what a model says: answers over KV that went through it, beside answers over exact KV.

Knows a runner and the codecs; no link, no engine and no time.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from twinpool.core.messages import Role, WorkerConfig
from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_format import record_bytes
from twinpool.kv_transfer.coder import Coder, aligned_bytes
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.link import BlockIds
from twinpool.kv_transfer.plan import Span
from twinpool.model.batch import Batch, Runner, SampleRow, ScoreRow
from twinpool.model.load import load_runner
from twinpool.model.shape import load_shape

NUM_COMPARED = 5  # the most probable tokens of each position, by the exact KV
NUM_SEEN = 20  # of which what a codec makes of them is looked up
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, seed=0)


@dataclass(frozen=True, slots=True)
class CodecError:
    """What one codec did to the answers to some prompts, each token being predicted from the exact answer before it."""

    codec: CodecName
    raw_bytes: int  # of the prompts' KV
    coded_bytes: int
    tokens: int  # predicted over coded KV: of each answer all but the first
    changed_tokens: int  # of them, those of which another one became the most probable
    mean_logprob_error: float  # over the NUM_COMPARED tokens of each position; natural logarithms
    max_logprob_error: float


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt, the blocks it has to itself, and what follows it greedily over exact KV."""

    token_ids: tuple[int, ...]
    block_ids: BlockIds
    span: Span
    answer: tuple[int, ...] = ()


Positions = tuple[TokenLogprobs, ...]


def measure_codec_errors(
    model: str, prompts: Many[Many[int]], codecs: Many[CodecName], *, new_tokens: int = 32, block_tokens: int = 16
) -> tuple[CodecError, ...]:
    """Measure each codec on a model, one thread, in the model's own dtype.

    Args:
        model: directory or ``dummy:SHAPE``.
        prompts: token ids, at least one prompt of at least one token.
        new_tokens: of each answer, at least 2.

    Raises:
        SpecError: the model cannot be loaded, or the prompts are too long for it.
        ValueError: a codec does not fit its KV, or a number is out of range. Nothing was computed.
    """
    if new_tokens < 2 or not prompts or not all(prompts):
        raise ValueError("need prompts of at least one token each, and answers of at least two tokens")
    return _CodecTrial(model, prompts, new_tokens, block_tokens).measure(codecs)


class _CodecTrial:
    """Owns a runner and the exact KV of some prompts."""

    def __init__(self, model: str, prompts: Many[Many[int]], new_tokens: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._num_blocks = 0
        longest = max(map(len, prompts)) + new_tokens
        needed = sum(-(-(len(prompt) + new_tokens) // block_tokens) for prompt in prompts)
        kv_bytes = needed * block_tokens * load_shape(model, "auto").kv_token_bytes
        config = WorkerConfig("bench-0", Role.MIXED, model, longest, kv_bytes, block_tokens, link="gloo")
        self._runner: Runner = load_runner(config)
        self._layout = self._runner.cache.layout
        self._coder = Coder()
        self._prompts = [self._place(tuple(prompt), new_tokens) for prompt in prompts]
        self._answer(new_tokens)
        self._exact = [self._gather(prompt) for prompt in self._prompts]

    def measure(self, codecs: Many[CodecName]) -> tuple[CodecError, ...]:
        for codec in codecs:
            record_bytes(codec, self._layout)
        truth = self._predict(CodecName.RAW)
        return tuple(self._compare(codec, truth, self._predict(codec)) for codec in codecs)

    def _place(self, token_ids: tuple[int, ...], new_tokens: int) -> _Prompt:
        first = self._num_blocks
        self._num_blocks += -(-(len(token_ids) + new_tokens) // self._block_tokens)
        span = Span(0, self._layout.num_layers, 0, self._layout.num_blocks(len(token_ids)))
        return _Prompt(token_ids, np.arange(first, self._num_blocks, dtype=np.int64), span)

    def _answer(self, new_tokens: int) -> None:
        """Compute the prompts, and go on greedily."""
        texts = [list(prompt.token_ids) for prompt in self._prompts]
        counts = [len(text) for text in texts]
        for _ in range(new_tokens):
            samples = tuple(SampleRow(row, GREEDY, 0, context=text) for row, text in enumerate(texts))
            sampled = self._runner.run(self._batch(texts, counts, samples=samples)).token_ids
            for text, token_id in zip(texts, sampled.tolist(), strict=True):
                text.append(token_id)
            counts = [1] * len(texts)
        self._prompts = [
            _Prompt(p.token_ids, p.block_ids, p.span, tuple(text[len(p.token_ids) :]))
            for p, text in zip(self._prompts, texts, strict=True)
        ]

    def _predict(self, codec: CodecName) -> tuple[Positions, ...]:
        """For each prompt, how probable its answer's later tokens are when the prompt's KV came through ``codec``."""
        for prompt, exact in zip(self._prompts, self._exact, strict=True):
            coding, raw = self._coding(codec, prompt), exact
            if not coding.is_raw:
                coded = aligned_bytes(coding.num_bytes(prompt.span, self._layout))
                self._coder.encode(coding, prompt.span, self._layout, exact, coded)
                raw = self._coder.decode(coding, prompt.span, self._layout, coded)
            self._runner.cache.scatter(0, self._layout.num_layers, self._blocks(prompt), raw)
        texts = [[*prompt.token_ids, *prompt.answer[:-1]] for prompt in self._prompts]
        counts = [len(prompt.answer) - 1 for prompt in self._prompts]
        scores = tuple(ScoreRow(row, prompt.answer[1:], NUM_SEEN) for row, prompt in enumerate(self._prompts))
        return self._runner.run(self._batch(texts, counts, scores=scores)).scores

    def _compare(self, codec: CodecName, truth: tuple[Positions, ...], found: tuple[Positions, ...]) -> CodecError:
        pairs = [pair for exact, coded in zip(truth, found, strict=True) for pair in zip(exact, coded, strict=True)]
        errors = [error for exact, coded in pairs for error in _logprob_errors(exact, coded)]
        return CodecError(
            codec=codec,
            raw_bytes=sum(map(len, self._exact)),
            coded_bytes=sum(self._coding(codec, p).num_bytes(p.span, self._layout) for p in self._prompts),
            tokens=len(pairs),
            changed_tokens=sum(exact.top[0][0] != coded.top[0][0] for exact, coded in pairs),
            mean_logprob_error=fmean(errors),
            max_logprob_error=max(errors),
        )

    def _coding(self, codec: CodecName, prompt: _Prompt) -> Coding:
        return Coding.of(codec, len(prompt.token_ids))

    def _blocks(self, prompt: _Prompt) -> BlockIds:
        return prompt.block_ids[: prompt.span.end_block]

    def _gather(self, prompt: _Prompt) -> np.ndarray:
        out = aligned_bytes(prompt.span.num_bytes(self._layout))
        self._runner.cache.gather(0, self._layout.num_layers, self._blocks(prompt), out)
        return out

    def _batch(
        self,
        texts: Many[list[int]],
        counts: Many[int],
        *,
        samples: tuple[SampleRow, ...] = (),
        scores: tuple[ScoreRow, ...] = (),
    ) -> Batch:
        """The last ``counts[i]`` tokens of each text; the KV of those before is there."""
        new = [text[len(text) - count :] for text, count in zip(texts, counts, strict=True)]
        return Batch(
            token_ids=np.concatenate([np.array(part, dtype=np.int64) for part in new]),
            cu_seqlens=np.cumsum([0, *counts], dtype=np.int32),
            context_lens=np.array([len(text) for text in texts], dtype=np.int32),
            block_tables=tuple(prompt.block_ids for prompt in self._prompts),
            samples=samples,
            scores=scores,
        )


def _logprob_errors(exact: TokenLogprobs, coded: TokenLogprobs) -> list[float]:
    """Of a token that is no longer among those looked up, what its error is at the least."""
    found, lowest = dict(coded.top), coded.top[-1][1]
    return [abs(logprob - found.get(token_id, lowest)) for token_id, logprob in exact.top[:NUM_COMPARED]]
