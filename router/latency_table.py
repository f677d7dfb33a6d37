"""Step times interpolated from profiled points: an honest reading of them, and the original simulator's own.

Knows the points' columns (those of splitwise-sim's performance data), no file and no unit but seconds.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

from twinpool.router.estimate import Numbers, fit_relative, larger
from twinpool.router.latency_fit import StepRows

MIXED_FACTOR = 1.1  # of the original simulator, for steps with prompts and decoding sequences
SPLIT_SHARE = 0.5  # a batch faster than half of a smaller one was not run as one batch

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProfilePoint:
    """One run: a batch of prompts of one length, and the steps that generated ``output_tokens`` for each."""

    prompt_tokens: int  # of each prompt
    batch: int
    output_tokens: int  # of each sequence
    prompt_s: float  # of the step that computed all prompts
    token_s: float  # mean of a later step

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens * self.batch

    @property
    def mean_context_tokens(self) -> float:
        """Tokens that each sequence held, over its decode steps."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points, straight between them and beyond the last one as between the last two."""

    x: tuple[float, ...]  # at least two, growing
    y: tuple[float, ...]
    extends_left: bool = False  # as between the first two; otherwise what comes before the first costs as much

    def at(self, x: Numbers) -> Numbers:
        """Values at a number or an array."""
        found: Numbers
        if isinstance(x, np.ndarray):
            found = np.array([self._at(value) for value in x.ravel().tolist()], np.float64).reshape(x.shape)
        else:
            found = self._at(x)
        return found

    def _at(self, x: float) -> float:
        xs, ys = self.x, self.y
        if x <= xs[0] and not self.extends_left:
            return ys[0]
        right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
        left = right - 1
        return ys[left] + (x - xs[left]) * (ys[right] - ys[left]) / (xs[right] - xs[left])


@dataclass(frozen=True, slots=True)
class TableForm:
    """Prefill by prompt tokens, decode by batch *and* context, from profiled points.

    A step with both costs its prefill and what decoding adds to an all but empty decode step: as in the linear form,
    the weights are read once. Chunks cost what their tokens do: the points know no attention to earlier chunks.
    """

    prefill_s: Curve  # over prompt tokens of a step
    decode_s: Curve  # over batch, at ``base_context_tokens`` each
    base_context_tokens: float
    context_s_per_token: float  # by which a decode step grows with the context of all its sequences

    @property
    def floor_s(self) -> float:
        """A decode step of the smallest profiled batch."""
        return self.decode_s.y[0]

    def seconds(
        self,
        prefill_tokens: Numbers,
        prefill_squares: Numbers,  # noqa: ARG002
        context_tokens: Numbers,
        batch: Numbers,
    ) -> Numbers:
        prefill_s = self.prefill_s.at(prefill_tokens) * (prefill_tokens > 0)
        extra_s = (self._step_s(context_tokens, batch) - self.floor_s) * (batch > 0)
        floor_s = self.floor_s * (batch > 0)
        result: Numbers = larger(prefill_s, floor_s) + extra_s
        return result

    def decode_seconds(self, context_tokens: float, batch: int, num_steps: int) -> float:
        if not batch:
            return 0.0
        grown = context_tokens + batch * (num_steps - 1) / 2  # mean over the steps
        return num_steps * self._step_s(grown, float(batch))

    def _step_s(self, context_tokens: Numbers, batch: Numbers) -> Numbers:
        more_tokens = context_tokens - batch * self.base_context_tokens
        return self.decode_s.at(batch) + self.context_s_per_token * more_tokens


@dataclass(frozen=True, slots=True)
class OriginalRuleForm:
    """What splitwise-sim makes of the same points (the simulator of Splitwise, ISCA'24), to reproduce its results.

    Both times are curves over *prompt size times batch size*. A decode step is looked up there by the number of tokens
    it generates, so batch and context cost next to nothing; a mixed step is looked up as a prefill of all its tokens,
    times 1.1. Both are faults that `TableForm` does not have.
    """

    prompt_s: Curve
    token_s: Curve

    def seconds(
        self,
        prefill_tokens: Numbers,
        prefill_squares: Numbers,  # noqa: ARG002
        context_tokens: Numbers,  # noqa: ARG002
        batch: Numbers,
    ) -> Numbers:
        decode_s = self.token_s.at(batch) * (batch > 0)
        factor = 1 + (MIXED_FACTOR - 1) * (batch > 0)
        prefill_s = self.prompt_s.at(prefill_tokens + batch) * factor
        result: Numbers = prefill_s * (prefill_tokens > 0) + decode_s * (prefill_tokens <= 0)
        return result

    def decode_seconds(self, context_tokens: float, batch: int, num_steps: int) -> float:  # noqa: ARG002
        return num_steps * self.token_s.at(float(batch)) if batch else 0.0


def median_points(points: Iterable[ProfilePoint]) -> list[ProfilePoint]:
    """One point for all repeats of a run: the medians of its times; by total tokens, prompt, output."""
    repeats: defaultdict[tuple[int, int, int], list[ProfilePoint]] = defaultdict(list)
    for point in points:
        repeats[point.total_tokens, point.prompt_tokens, point.output_tokens].append(point)
    return [
        ProfilePoint(
            prompt,
            total // prompt,
            output,
            median(point.prompt_s for point in same),
            median(point.token_s for point in same),
        )
        for (total, prompt, output), same in sorted(repeats.items())
    ]


def without_split_batches(points: Sequence[ProfilePoint]) -> list[ProfilePoint]:
    """Leave out points whose prompts took less than half as long as those of a smaller batch: such a batch ran out of
    memory and was run in pieces, so that neither of its times is a step's."""
    slowest, kept = 0.0, []
    for point in sorted(points, key=lambda point: point.total_tokens):
        if point.prompt_s >= SPLIT_SHARE * slowest:
            kept.append(point)
        slowest = max(slowest, point.prompt_s)
    return kept


def table_form(points: Iterable[ProfilePoint]) -> TableForm:
    """Medians over repeats, split batches left out.

    Raises:
        ValueError: too few points: two prompt lengths, or two batches of one length, are missing.
    """
    kept = without_split_batches(median_points(points))
    prefill = _curve((point.total_tokens, point.prompt_s) for point in kept)
    most = max((_batches_of(kept, tokens) for tokens in {p.prompt_tokens for p in kept}), key=len)
    base = median(point.mean_context_tokens for point in most)
    decode = _curve((point.batch, point.token_s) for point in most)
    return TableForm(prefill, decode, base, _context_slope(kept))


def original_rule_form(points: Iterable[ProfilePoint]) -> OriginalRuleForm:
    """Medians over everything of one total size, outliers and all.

    Raises:
        ValueError: all points are of one size.
    """
    points = list(points)
    prompts = _curve(((point.total_tokens, point.prompt_s) for point in points), extends_left=True)
    return OriginalRuleForm(
        prompts, _curve(((point.total_tokens, point.token_s) for point in points), extends_left=True)
    )


def step_rows(points: Sequence[ProfilePoint]) -> StepRows:
    """The points as measured steps: a prefill and a decode step each."""
    none = np.zeros(len(points))
    columns = [(p.total_tokens, p.batch * p.prompt_tokens**2, p.prompt_s) for p in points]
    tokens, squares, prompt_s = np.array(columns, np.float64).T
    context = np.array([p.batch * p.mean_context_tokens for p in points], np.float64)
    batch = np.array([p.batch for p in points], np.float64)
    token_s = np.array([p.token_s for p in points], np.float64)
    return StepRows(
        np.concatenate([tokens, none]),
        np.concatenate([squares, none]),
        np.concatenate([none, context]),
        np.concatenate([none, batch]),
        np.concatenate([prompt_s, token_s]),
    )


def _batches_of(points: Sequence[ProfilePoint], prompt_tokens: int) -> list[ProfilePoint]:
    """All batch sizes of one prompt length, each with the fewest output tokens that were tried."""
    same = [point for point in points if point.prompt_tokens == prompt_tokens]
    fewest = min(point.output_tokens for point in same)
    return [point for point in same if point.output_tokens == fewest]


def _context_slope(points: Sequence[ProfilePoint]) -> float:
    """Seconds that a token of context adds to a decode step, from runs of one sequence; 0 where there is only one."""
    alone = [point for point in points if point.batch == 1]
    contexts = np.array([point.mean_context_tokens for point in alone], np.float64)
    if len(set(contexts)) < 2:
        return 0.0
    terms = np.stack([np.ones_like(contexts), contexts], axis=1)
    return fit_relative(terms, np.array([point.token_s for point in alone], np.float64))[1]


def _curve(pairs: Iterable[tuple[float, float]], *, extends_left: bool = False) -> Curve:
    by_x: defaultdict[float, list[float]] = defaultdict(list)
    for x, y in pairs:
        by_x[float(x)].append(y)
    if len(by_x) < 2:
        raise ValueError("a curve needs points of at least two sizes")
    xs = sorted(by_x)
    assert all(one < other for one, other in pairwise(xs))
    return Curve(tuple(xs), tuple(median(by_x[x]) for x in xs), extends_left)
