"""The largest rate at which a cluster still meets its goals, found by running it at some, with several seeds each.

Knows rates and shares; what a run is, is an argument.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

Values = dict[str, Any]
Trial = tuple[float, Values]  # one run's attainment and report


@dataclass(frozen=True, slots=True)
class RatePoint:
    """The runs at one rate, which differ by their seed: at least one."""

    rate_rps: float
    trials: tuple[Trial, ...]

    @property
    def attainment(self) -> float:
        """Mean over the runs: what is compared with what is wanted."""
        return fmean(share for share, _ in self.trials)

    @property
    def least(self) -> float:
        """Attainment of the worst run."""
        return min(share for share, _ in self.trials)

    @property
    def most(self) -> float:
        """Attainment of the best run."""
        return max(share for share, _ in self.trials)

    def mean(self, value: Callable[[Values], float | None]) -> float | None:
        """Of something in the runs' reports; None where none has it."""
        there = [found for _, report in self.trials if (found := value(report)) is not None]
        return fmean(there) if there else None


@dataclass(frozen=True, slots=True)
class RateSearch:
    """What a search found.

    ``points`` ascend by rate. ``rate_rps`` is the largest rate that was run whose mean attainment is what is wanted;
    all smaller ones that were run keep it, too. None where the lowest already misses. ``missed_rps`` is the next rate
    that was run, which misses: the true knee lies between the two. None where the highest rate still keeps.
    ``is_monotone`` is whether mean attainment never rose with the rate by more than ``tolerance`` among the points:
    bisection supposes that it falls.
    """

    points: tuple[RatePoint, ...]
    rate_rps: float | None
    missed_rps: float | None
    is_monotone: bool
    tolerance: float

    @property
    def found(self) -> RatePoint | None:
        """The runs at the rate that was found."""
        return next((point for point in self.points if point.rate_rps == self.rate_rps), None)

    @property
    def is_bounded(self) -> bool:
        """Whether a rate that misses was seen at all."""
        return self.missed_rps is not None


def search_rate(
    run: Callable[[float], Sequence[Trial]],
    low_rps: float,
    high_rps: float,
    attainment: float,
    *,
    precision: float = 0.02,
    num_bracket: int = 6,
    tolerance: float = 0.02,
) -> RateSearch:
    """Run at rates evenly apart on a log scale, then halve the gap between the last that keeps and the first that does
    not. All rates are rounded to four digits before they are run, so that one that is printed is the one that was run.

    Args:
        run: from a rate to the attainment and report of each seed's run.
        attainment: the least mean share of requests that have to meet their goals.
        precision: the search ends once the gap is at most so large a share of the rate. At least 0.005.
        num_bracket: rates of the first pass; it ends at the first that misses, as higher ones take longest.
    """
    points: dict[float, RatePoint] = {}

    def keeps(rate_rps: float) -> bool:
        point = points[rate_rps] = RatePoint(rate_rps, tuple(run(rate_rps)))
        return point.attainment >= attainment

    low, high = _bracket(keeps, _log_spaced(low_rps, high_rps, num_bracket))
    if low is not None and high is not None:
        while (high - low) > precision * high:
            middle = rounded_rate((low * high) ** 0.5)
            low, high = (middle, high) if keeps(middle) else (low, middle)
    in_order = tuple(points[rate] for rate in sorted(points))
    is_monotone = all(later.attainment <= earlier.attainment + tolerance for earlier, later in pairwise(in_order))
    return RateSearch(in_order, low, high, is_monotone, tolerance)


def rounded_rate(rate_rps: float) -> float:
    """To four significant digits."""
    return float(f"{rate_rps:.4g}")


def _bracket(keeps: Callable[[float], bool], rates: list[float]) -> tuple[float | None, float | None]:
    """The last rate that keeps and the first that misses; None where there is none."""
    low = None
    for rate in rates:
        if not keeps(rate):
            return low, rate
        low = rate
    return low, None


def _log_spaced(low_rps: float, high_rps: float, num: int) -> list[float]:
    """From the one to the other, rounded; each once."""
    ratio = (high_rps / low_rps) ** (1 / (num - 1))
    rates = [low_rps * ratio**i for i in range(num - 1)] + [high_rps]
    return list(dict.fromkeys(map(rounded_rate, rates)))
