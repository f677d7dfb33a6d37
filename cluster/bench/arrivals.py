"""When the requests of a load arrive, drawn before it begins: an open loop never waits for answers.

Chance is an argument, so a seed gives the same arrivals everywhere. Knows nothing of what arrives.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from twinpool.core.errors import SpecError

MAX_REQUESTS = 1_000_000
DRAWN_AT_ONCE = 1024  # a longer load begins exactly like a shorter one of the same seed


class Process(StrEnum):
    """How gaps between arrivals are distributed."""

    POISSON = "poisson"  # exponential gaps
    GAMMA = "gamma"  # gamma gaps, in bursts where their coefficient of variation is over 1


def draw_arrivals(
    rng: np.random.Generator,
    process: Process,
    rate_rps: float,
    *,
    duration_s: float = np.inf,
    requests: int = MAX_REQUESTS,
    cv: float = 1.0,
) -> NDArray[np.float64]:
    """Seconds from the begin of the load at which requests arrive, ascending; at most so many, in that time.

    Args:
        rate_rps: mean arrivals per second.
        cv: standard deviation of the gaps over their mean; for gamma only. 1 is Poisson.

    Raises:
        SpecError: nothing arrives in that time, or more than a million requests would.
    """
    if duration_s == np.inf and requests >= MAX_REQUESTS:
        raise SpecError("--duration or --requests has to bound the load")
    gaps: list[NDArray[np.float64]] = []
    total_s = 0.0
    while total_s < duration_s and len(gaps) * DRAWN_AT_ONCE < requests:
        gaps.append(_draw_gaps(rng, process, rate_rps, cv))
        total_s += float(gaps[-1].sum())
        if len(gaps) * DRAWN_AT_ONCE > MAX_REQUESTS:
            raise SpecError(f"--rate {rate_rps:g} for {duration_s:g} s is over {MAX_REQUESTS} requests")
    times = np.cumsum(np.concatenate(gaps))
    times = times[times < duration_s][:requests]
    if not len(times):
        raise SpecError(f"--duration: nothing arrives in {duration_s:g} s at {rate_rps:g} requests/s")
    return times


def _draw_gaps(rng: np.random.Generator, process: Process, rate_rps: float, cv: float) -> NDArray[np.float64]:
    if process is Process.POISSON:
        return rng.exponential(1 / rate_rps, DRAWN_AT_ONCE)
    return rng.gamma(cv**-2, cv**2 / rate_rps, DRAWN_AT_ONCE)
