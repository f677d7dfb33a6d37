"""How long answers turn out here, and from that, how long those under way may become.

Pure. Knows lengths, not what was said or asked; time and chance play no part.
"""

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

HISTORY = 1000  # answers remembered: the paper's window
MIN_HISTORY = 20  # with fewer, one answer in twenty would be longer than any known
GOLDEN = 0.6180339887498949  # successive multiples of it, modulo 1, fill (0, 1) more evenly than chance would


class LengthHistory:
    """Owns the lengths, in tokens, of the answers that ended here last.

    A prediction is drawn, as in Past-Future (ASPLOS'25: the output length of a request is a sample of the recent
    lengths that exceed what it has written), but from a stratum in place of a random number: the n-th sequence that
    came always stands at the quantile ``frac(n * golden ratio)`` of that conditional distribution. So the sequences of
    a batch are spread over the distribution as evenly as so many can be, long tail included, and their sum is close to
    its expectation, where independent draws err by the square root of their number. And as a sequence keeps its
    stratum, nobody waits for a lucky draw until it is let in. What error remains is held back as a reserve (see
    batching.py), for which `error_tokens` is the unit.
    """

    def __init__(self, capacity: int = HISTORY) -> None:
        self._capacity = capacity
        self._recent: deque[int] = deque()
        self._room = np.empty(capacity, np.int64)
        self._sorted = self._room[:0]
        self._sum = self._sum_of_squares = 0

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, num_tokens: int) -> None:
        """An answer has ended; the oldest one known is forgotten when there are too many."""
        if len(self._recent) == self._capacity:
            oldest = self._recent.popleft()
            self._replace(oldest, num_tokens)
            self._sum -= oldest
            self._sum_of_squares -= oldest * oldest
        else:
            self._insert(num_tokens)
        self._recent.append(num_tokens)
        self._sum += num_tokens
        self._sum_of_squares += num_tokens * num_tokens

    def _insert(self, num_tokens: int) -> None:
        place, count = int(self._sorted.searchsorted(num_tokens)), len(self._sorted)
        self._room[place + 1 : count + 1] = self._room[place:count].copy()
        self._room[place] = num_tokens
        self._sorted = self._room[: count + 1]

    def _replace(self, old: int, new: int) -> None:
        """Move what lies between the two in ``_sorted`` by one place."""
        lengths = self._sorted
        left, right = int(lengths.searchsorted(old)), int(lengths.searchsorted(new))
        if left < right:
            lengths[left : right - 1] = lengths[left + 1 : right]
            lengths[right - 1] = new
        else:
            lengths[right + 1 : left + 1] = lengths[right:left].copy()
            lengths[right] = new

    @property
    def is_enough(self) -> bool:
        """Whether anything is predicted yet: before, each answer counts with its limit."""
        return len(self._recent) >= MIN_HISTORY

    @property
    def error_tokens(self) -> float:
        """Standard deviation of one answer's length; 0 while limits are used, which are never exceeded."""
        count = len(self._recent)
        if count < MIN_HISTORY:
            return 0.0
        return math.sqrt(max(0, count * self._sum_of_squares - self._sum * self._sum)) / count

    def predict(
        self, written: NDArray[np.int64], limits: NDArray[np.int64], turns: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Tokens [N] that answers will have at their end: more than ``written`` [N], never more than ``limits`` [N].

        ``turns`` [N] count the sequences that came here. An answer already longer than all known ones is taken to be
        half done, as lengths without a scale are. An answer at its limit stays there. O(N log H) for a history of H.
        """
        if not self.is_enough:
            return limits
        lengths = self._sorted
        first = lengths.searchsorted(written, side="right")
        num_longer = len(lengths) - first
        quantiles = turns * GOLDEN
        quantiles -= np.floor(quantiles)
        chosen = first + (quantiles * num_longer).astype(np.int64)
        known = lengths.take(chosen, mode="clip")
        if np.count_nonzero(num_longer) < len(num_longer):
            known = np.where(num_longer > 0, known, 2 * written)
        return np.minimum(known, limits)

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError if it differs."""
        assert sorted(self._recent) == self._sorted.tolist()
        assert len(self._recent) <= self._capacity
        assert (self._sum, self._sum_of_squares) == (sum(self._recent), sum(n * n for n in self._recent))
