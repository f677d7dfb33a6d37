"""The largest rate at which a cluster still meets its goals, found by running it at some.

Knows rates and shares; what a run is, is an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One run: its rate, its attainment, and its whole report."""

    rate_rps: float
    attainment: float
    report: Values


@dataclass(frozen=True, slots=True)
class RateSearch:
    """What a search found.

    ``points`` ascend by rate. ``rate_rps`` is the largest rate below every one that was seen to miss; None where the
    lowest already does. ``is_bounded`` says that a rate which misses was seen at all. ``is_monotone`` is whether
    attainment never rose with the rate by more than ``tolerance`` among the points: bisection supposes that it falls.
    """

    points: tuple[RatePoint, ...]
    rate_rps: float | None
    is_bounded: bool
    is_monotone: bool


def search_rate(
    run: Callable[[float], tuple[float, Values]],
    low_rps: float,
    high_rps: float,
    attainment: float,
    *,
    precision: float = 0.02,
    num_bracket: int = 6,
    tolerance: float = 0.02,
) -> RateSearch:
    """Run at rates evenly apart on a log scale, then halve the gap between the last that keeps and the first that does
    not.

    Args:
        run: from a rate to its attainment and report.
        attainment: the least share of requests that have to meet their goals.
        precision: the search ends once the gap is at most so large a share of the rate.
        num_bracket: rates of the first pass; it ends at the first that misses, as higher ones take longest.
    """
    points: dict[float, RatePoint] = {}

    def keeps(rate_rps: float) -> bool:
        share, report = run(rate_rps)
        points[rate_rps] = RatePoint(rate_rps, share, report)
        return share >= attainment

    low, high = _bracket(keeps, _log_spaced(low_rps, high_rps, num_bracket))
    if low is not None and high is not None:
        while (high - low) > precision * high:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if keeps(middle) else (low, middle)
    in_order = tuple(points[rate] for rate in sorted(points))
    is_monotone = all(later.attainment <= earlier.attainment + tolerance for earlier, later in pairwise(in_order))
    return RateSearch(in_order, low, high is not None, is_monotone)


def _bracket(keeps: Callable[[float], bool], rates: list[float]) -> tuple[float | None, float | None]:
    """The last rate that keeps and the first that misses; None where there is none."""
    low = None
    for rate in rates:
        if not keeps(rate):
            return low, rate
        low = rate
    return low, None


def _log_spaced(low_rps: float, high_rps: float, num: int) -> list[float]:
    if low_rps == high_rps:
        return [low_rps]
    ratio = (high_rps / low_rps) ** (1 / (num - 1))
    return [low_rps * ratio**i for i in range(num - 1)] + [high_rps]
