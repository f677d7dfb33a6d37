"""What a worker is asked to compute so that its step times are known: which prompts and batches, within its limits.

Pure. Knows sizes, not workers; how long anything takes, it is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

FULL_STEPS, QUICK_FULL_STEPS = 16, 8  # steps with the whole batch that a burst aims at
MAX_BURST_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker can take."""

    max_model_len: int
    chunk_tokens: int
    max_running: int
    total_tokens: int  # whose KV it can hold
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Burst:
    """``batch`` sequences decode; meanwhile prompts come, each when the one before has its token.

    A prompt has ``cached_tokens`` in the prefix cache, and is ``prompts[i]`` tokens long in all.
    """

    batch: int = 0
    context_tokens: int = 0  # of each sequence that decodes, when it joins
    decode_tokens: int = 0  # of each
    prompts: tuple[int, ...] = ()
    copies: int = 1  # of each prompt, sent at once
    cached_tokens: int = 0

    @property
    def makes_sense(self) -> bool:
        """Whether what decodes has a prompt, and tokens to decode after its first."""
        return not self.batch or (self.context_tokens >= 1 and self.decode_tokens >= 2)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that are computed for it, the cached ones included once."""
        return self.batch * self.context_tokens + self.copies * sum(self.prompts)

    @property
    def peak_tokens(self) -> int:
        """Tokens of KV that it holds at most."""
        most = max(self.prompts, default=0) * self.copies
        return self.batch * (self.context_tokens + self.decode_tokens) + most


def plan_bursts(limits: Limits, *, quick: bool) -> tuple[Burst, ...]:
    """The grid, cheap bursts first: prompt lengths, cached prefixes, decode batch x context, and both at once."""
    room = min(MAX_BURST_TOKENS, limits.total_tokens * 9 // 10)
    found = [*_prefills(limits, quick), *_cached(limits, quick), *_decodes(limits, quick), *_mixed(limits, quick)]
    fitting = [burst for burst in dict.fromkeys(found) if burst.makes_sense and burst.peak_tokens <= room]
    return tuple(sorted(fitting, key=lambda burst: (burst.prefill_tokens, burst.batch)))


def _prefills(limits: Limits, quick: bool) -> Iterator[Burst]:
    longest = limits.max_model_len - 1
    for length in sorted({*_doubling(16, longest, 4 if quick else 2), longest}):
        yield Burst(prompts=(length,))
    if limits.chunk_tokens >= 64:
        yield Burst(prompts=(min(limits.chunk_tokens // 4, longest),), copies=8)


def _cached(limits: Limits, quick: bool) -> Iterator[Burst]:
    longest = limits.max_model_len - 1
    for share in (2,) if quick else (4, 2, 1):
        for new in (16, limits.chunk_tokens):
            cached = (longest // share - new) // limits.block_tokens * limits.block_tokens
            if cached > 0:
                yield Burst(prompts=(cached + new,), cached_tokens=cached)


def _decodes(limits: Limits, quick: bool) -> Iterator[Burst]:
    for batch in _doubling(1, min(128, limits.max_running), 4 if quick else 2):
        longest = limits.max_model_len - 1 - _decode_tokens(limits, batch, limits.max_model_len, quick)
        for context in sorted({*_doubling(32, longest, 8), longest} if not quick else {32, longest // 2}):
            if 0 < context <= longest:
                yield Burst(batch, context, _decode_tokens(limits, batch, context, quick))


def _mixed(limits: Limits, quick: bool) -> Iterator[Burst]:
    chunk = limits.chunk_tokens
    for batch in (8,) if quick else (1, 4, 16, 64):
        if batch >= min(chunk, limits.max_running + 1):
            continue
        lengths = [length for length in (chunk // 8, chunk // 2, chunk - batch, 3 * chunk) if length >= 2]
        prompts = tuple(min(length, limits.max_model_len - 1) for length in lengths)
        beside = sum(ceil(length / (chunk - batch)) + 4 for length in prompts)
        context = min(128, limits.max_model_len // 4)
        decode_tokens = min(_decode_tokens(limits, batch, context, quick) + beside, limits.max_model_len - 1 - context)
        yield Burst(batch, context, decode_tokens, prompts)


def _decode_tokens(limits: Limits, batch: int, context: int, quick: bool) -> int:
    """Tokens of each answer, so that the first to join still decodes a while after the last."""
    joining = ceil(batch * context / max(1, limits.chunk_tokens - batch)) + 2
    return min((QUICK_FULL_STEPS if quick else FULL_STEPS) + joining, limits.max_model_len // 2)


def _doubling(first: int, most: int, factor: int) -> list[int]:
    values = []
    while first <= most:
        values.append(first)
        first *= factor
    return values


def predict_seconds(burst: Burst, token_s: float, step_s: float) -> float:
    """About how long a burst will take, at so much per prompt token and per decode step of its batch."""
    return burst.prefill_tokens * token_s + burst.decode_tokens * step_s
