"""What is told of a sweep: its rule, the rate found with the one that missed, and every rate's runs. As plain values.

Knows reports' keys; prints nothing.
"""

from collections.abc import Callable
from typing import Any

from twinpool.cluster.simulate.sweep import RateSweep
from twinpool.simulator.rate_search import RatePoint

Values = dict[str, Any]
RUN_KEYS = ("requests", "slo_attainment", "goodput_rps", "goodput_rps_per_gpu", "ttft_s", "tpot_s", "utilisation")


def sweep_values(done: RateSweep) -> Values:
    """The object ``sweep`` of the report."""
    found = done.found
    return {
        "rate_rps": found.rate_rps,
        "missed_rps": found.missed_rps,
        "attainment": done.sweep.attainment,
        "rule": "the largest rate run whose mean slo_attainment over seeds is attainment or more, as at all lower",
        "seeds": list(done.seeds),
        "is_one_draw": done.is_one_draw,
        "is_bounded": found.is_bounded,
        "is_monotone": found.is_monotone,
        "tolerance": found.tolerance,
        "points": [_point_values(point, done) for point in found.points],
    }


def _point_values(point: RatePoint, done: RateSweep) -> Values:
    """One rate: means over its seeds, the worst and best attainment, and each seed's own numbers."""
    busiest = max(_roles(point), key=lambda role: point.mean(_busy(role)) or 0.0)
    return {
        "rate_rps": point.rate_rps,
        "is_met": point.attainment >= done.sweep.attainment,
        "slo_attainment": point.attainment,
        "slo_attainment_least": point.least,
        "slo_attainment_most": point.most,
        "goodput_rps": point.mean(lambda report: report["goodput_rps"]),
        "goodput_rps_per_gpu": point.mean(lambda report: report["goodput_rps_per_gpu"]),
        "ttft_p90_s": point.mean(lambda report: report["ttft_s"]["p90"]),
        "tpot_p90_s": point.mean(lambda report: report["tpot_s"]["p90"]),
        "busiest_pool": busiest,
        "busiest_pool_busy": point.mean(_busy(busiest)),
        "runs": [
            {"seed": seed, **{key: report[key] for key in RUN_KEYS}}
            for seed, (_, report) in zip(done.seeds, point.trials, strict=True)
        ],
    }


def _roles(point: RatePoint) -> list[str]:
    return list(point.trials[0][1]["utilisation"])


def _busy(role: str) -> Callable[[Values], float]:
    return lambda report: float(report["utilisation"][role]["busy"])
