"""The numbers that two clusters are compared by, and how far they are apart.

Pure arithmetic; knows neither the live cluster nor the simulated one.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

Values = dict[str, Any]
RANKS = (50, 90)
LATENCIES = ("ttft_s", "tpot_s")
MAX_RELATIVE = 0.05
MAX_POINTS = 3.0


def numbers_of(ttfts_s: Sequence[float | None], tpots_s: Sequence[float | None], met: int, offered: int) -> Values:
    """p50 and p90 of what completed requests saw, and the share of all offered that met both goals."""
    return {
        "ttft_s": _percentiles(ttfts_s),
        "tpot_s": _percentiles(tpots_s),
        "slo_attainment": met / offered,
    }


def _percentiles(values: Sequence[float | None]) -> dict[str, float | None]:
    there = [value for value in values if value is not None]
    found = np.percentile(there, RANKS) if there else [None] * len(RANKS)
    return {f"p{rank}": None if value is None else float(value) for rank, value in zip(RANKS, found, strict=True)}


def middle_of(runs: Sequence[Values]) -> Values:
    """Each number's median over the runs."""
    return _each(runs, median)


def spread_of(runs: Sequence[Values]) -> Values:
    """By how much of the median each latency differs between runs; of attainment, in points."""
    found = _each(runs, lambda values: (max(values) - min(values)) / median(values) if median(values) else 0.0)
    shares = [run["slo_attainment"] for run in runs]
    return found | {"slo_attainment": 100 * (max(shares) - min(shares))}


def _each(runs: Sequence[Values], join: Any) -> Values:
    def joined(values: list[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return join(there) if there else None

    found: Values = {
        name: {rank: joined([run[name][rank] for run in runs]) for rank in runs[0][name]} for name in LATENCIES
    }
    return found | {"slo_attainment": joined([run["slo_attainment"] for run in runs])}


def compare(live: Values, simulated: Values) -> Values:
    """``simulated / live - 1`` of each latency, and by how many points attainment differs."""
    found: Values = {
        name: {rank: _relative(simulated[name][rank], live[name][rank]) for rank in live[name]} for name in LATENCIES
    }
    return found | {"slo_attainment": 100 * (simulated["slo_attainment"] - live["slo_attainment"])}


def _relative(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base - 1


def is_within(difference: Values) -> bool:
    """Whether every latency is within 5 % and attainment within 3 points."""
    latencies = [value for name in LATENCIES for value in difference[name].values()]
    near = all(value is not None and abs(value) <= MAX_RELATIVE for value in latencies)
    return near and abs(difference["slo_attainment"]) <= MAX_POINTS
