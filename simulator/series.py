"""Amounts over time in at most 600 buckets, which double in width when a run outgrows them.

Knows neither what flows nor where.
"""

import numpy as np
from numpy.typing import NDArray

MAX_BUCKETS = 600
FIRST_WIDTH_S = 0.1


class Series:
    """R rows of amounts over time. What comes before the start counts as at the start."""

    def __init__(self, num_rows: int, start_s: float = 0.0) -> None:
        self.start_s = start_s
        self.width_s = FIRST_WIDTH_S
        self._sums = np.zeros((num_rows, MAX_BUCKETS))
        self._used = 0

    def add(
        self,
        rows: NDArray[np.int64],
        started_s: NDArray[np.float64],
        ended_s: NDArray[np.float64],
        levels: NDArray[np.float64] | None = None,
    ) -> None:
        """Add ``level * seconds`` to rows [M] for spans of time [M], to every bucket its own part; 1 is the level."""
        if not len(rows):
            return
        self._grow(float(ended_s.max()))
        started, ended = ((at_s - self.start_s).clip(0.0) / self.width_s for at_s in (started_s, ended_s))
        first = np.minimum(started.astype(np.int64), MAX_BUCKETS - 1)
        touched = np.minimum(np.ceil(ended - 1e-9).astype(np.int64), MAX_BUCKETS) - first  # no bucket for a rounding
        touched = np.maximum(1, touched)
        span = np.repeat(np.arange(len(rows)), touched)
        bucket = first[span] + np.arange(len(span)) - np.repeat(np.cumsum(touched) - touched, touched)
        part = np.minimum(ended[span], bucket + 1.0) - np.maximum(started[span], bucket)
        amount = np.maximum(0.0, part) * self.width_s * (1.0 if levels is None else levels[span])
        num_rows = len(self._sums)
        self._sums += np.bincount(rows[span] * MAX_BUCKETS + bucket, amount, num_rows * MAX_BUCKETS).reshape(
            num_rows, -1
        )
        self._used = max(self._used, int(bucket.max()) + 1)

    def _grow(self, until_s: float) -> None:
        """Join each two neighbours until the buckets reach that far."""
        while (until_s - self.start_s) > MAX_BUCKETS * self.width_s:
            joined = self._sums.reshape(len(self._sums), -1, 2).sum(axis=2)
            self._sums = np.concatenate([joined, np.zeros_like(joined)], axis=1)
            self.width_s *= 2
            self._used = (self._used + 1) // 2

    def table(self) -> NDArray[np.float64]:
        """[R, buckets in use] amounts."""
        return self._sums[:, : self._used].copy()
