"""A sketch of many numbers in little memory: percentiles within half a percent, whatever their distribution.

Knows nothing of what the numbers mean.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RELATIVE_ERROR = 0.005
SMALLEST = 1e-9  # what is below counts as 0
LARGEST = 1e9
PERCENTILES = (50, 90, 99)

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_FIRST = math.ceil(math.log(SMALLEST) / _LOG_GAMMA)
_NUM_BUCKETS = math.ceil(math.log(LARGEST) / _LOG_GAMMA) - _FIRST + 2  # one for zeros, and both ends
_CENTRES = np.concatenate([[0.0], 2 * _GAMMA ** np.arange(_FIRST, _FIRST + _NUM_BUCKETS - 1) / (_GAMMA + 1)])
_CENTRES.flags.writeable = False
_FLUSH_AT = 4096


class Sketch:
    """Numbers of at least 0, each with a weight, in buckets whose bounds grow by one factor.

    A bucket's centre is within `RELATIVE_ERROR` of all that is in it, for numbers from `SMALLEST` to `LARGEST` (Masson,
    Rim and Lee: DDSketch, VLDB'19, section 2). Count, sum, least and largest are exact. About 33 KB, always.
    """

    __slots__ = ("_counts", "_largest", "_least", "_sum", "_values", "_weights")

    def __init__(self) -> None:
        self._counts: NDArray[np.float64] | None = None  # [_NUM_BUCKETS]; made when something comes
        self._sum = 0.0
        self._least = math.inf
        self._largest = -math.inf
        self._values: list[float] = []  # not in the buckets yet
        self._weights: list[float] = []

    def add(self, value: float, weight: float = 1.0) -> None:
        """Count one number, as if it came ``weight`` times.

        Raises:
            ValueError: on this or a later call, if the number is below 0 or not finite, or the weight is below 0.
        """
        self._values.append(value)
        self._weights.append(weight)
        if len(self._values) >= _FLUSH_AT:
            self._flush()

    def add_many(
        self, values: Iterable[float] | NDArray[np.float64], weights: NDArray[np.float64] | None = None
    ) -> None:
        """Count many numbers [M], each once or with its weight [M]. Raises as `add` does, at once."""
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        self._count(array, np.ones_like(array) if weights is None else weights.astype(np.float64))

    def _flush(self) -> None:
        if self._values:
            values, weights = np.array(self._values), np.array(self._weights)
            self._values, self._weights = [], []
            self._count(values, weights)

    def _count(self, values: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        if not (
            np.isfinite(values).all() and (values >= 0).all() and np.isfinite(weights).all() and (weights >= 0).all()
        ):
            raise ValueError("a sketch takes finite numbers of at least 0, with finite weights of at least 0")
        values, weights = values[weights > 0], weights[weights > 0]
        if not len(values):
            return
        logs = np.ceil(np.log(np.clip(values, SMALLEST, LARGEST)) / _LOG_GAMMA).astype(np.int64)
        buckets = np.where(values < SMALLEST, 0, logs - _FIRST + 1)
        counts = np.bincount(buckets, weights, _NUM_BUCKETS).astype(np.float64)
        self._counts = counts if self._counts is None else self._counts + counts
        self._sum += float(values @ weights)
        self._least = min(self._least, float(values.min()))
        self._largest = max(self._largest, float(values.max()))

    @property
    def count(self) -> float:
        """Sum of all weights."""
        self._flush()
        return 0.0 if self._counts is None else float(self._counts.sum())

    @property
    def sum(self) -> float:
        """Sum of all numbers, each times its weight."""
        self._flush()
        return self._sum

    @property
    def mean(self) -> float | None:
        """None where there is nothing."""
        count = self.count
        return self._sum / count if count else None

    @property
    def least(self) -> float | None:
        self._flush()
        return None if self._counts is None else self._least

    @property
    def largest(self) -> float | None:
        self._flush()
        return None if self._counts is None else self._largest

    def quantile(self, share: float) -> float | None:
        """The number below which ``share`` (0 to 1) of them are, interpolated between neighbours; None: there is none.

        As numpy's percentile has it, within `RELATIVE_ERROR`.
        """
        found = self._quantiles([share])
        return None if found is None else float(found[0])

    def percentiles(self) -> dict[str, float | None]:
        """p50, p90 and p99; each None where there is nothing."""
        found = self._quantiles([rank / 100 for rank in PERCENTILES])
        return {f"p{rank}": None if found is None else float(found[i]) for i, rank in enumerate(PERCENTILES)}

    def _quantiles(self, shares: list[float]) -> NDArray[np.float64] | None:
        self._flush()
        if self._counts is None:
            return None
        cumulative = np.cumsum(self._counts)
        position = np.array(shares) * max(0.0, cumulative[-1] - 1)
        below = np.floor(position)
        low, high = (self._at_rank(cumulative, ranks) for ranks in (below, below + 1))
        found: NDArray[np.float64] = low + (high - low) * (position - below)
        return found

    def _at_rank(self, cumulative: NDArray[np.float64], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Numbers at places in ascending order, from 0."""
        last = int(np.searchsorted(cumulative, cumulative[-1]))
        buckets = np.minimum(np.searchsorted(cumulative, ranks, side="right"), last)
        return np.asarray(_CENTRES[buckets].clip(self._least, self._largest))

    def cumulative(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ascending numbers [K], and the share of all that is at most each [K]; both empty where there is nothing."""
        self._flush()
        if self._counts is None:
            return np.empty(0), np.empty(0)
        there = np.flatnonzero(self._counts)
        shares = np.cumsum(self._counts[there])
        return np.clip(_CENTRES[there], self._least, self._largest), shares / shares[-1]

    def merge(self, other: "Sketch") -> None:
        """Count all that another sketch has, too; the other one stays as it is."""
        self._flush()
        other._flush()
        if other._counts is None:
            return
        self._counts = other._counts.copy() if self._counts is None else self._counts + other._counts
        self._sum += other._sum
        self._least = min(self._least, other._least)
        self._largest = max(self._largest, other._largest)

    def scaled(self, factor: float) -> "Sketch":
        """The same numbers with all weights times ``factor``; empty where that is 0."""
        self._flush()
        copy = Sketch()
        if self._counts is not None and factor > 0:
            copy._counts, copy._sum = self._counts * factor, self._sum * factor
            copy._least, copy._largest = self._least, self._largest
        return copy
