"""When the requests of a load arrive, whatever becomes of those before: an open loop never waits for answers.

Chance is an argument, so a seed gives the same arrivals everywhere. Knows nothing of what arrives.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple, assert_never

import numpy as np
from numpy.typing import NDArray

from twinpool.core.errors import SpecError

MAX_REQUESTS = 1_000_000
DRAWN_AT_ONCE = 1024  # a longer load begins exactly like a shorter one of the same seed


class Process(StrEnum):
    """How gaps between arrivals are distributed."""

    POISSON = "poisson"  # exponential gaps
    GAMMA = "gamma"  # gamma gaps, in bursts where their coefficient of variation is over 1
    CONSTANT = "constant"  # equal gaps


class Step(NamedTuple):
    """A mean rate, from a time on until the next step."""

    rate_rps: float
    start_s: float = 0.0


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


def stream_arrivals(
    rng: np.random.Generator, process: Process, steps: Sequence[Step], *, cv: float = 1.0
) -> Iterator[float]:
    """Seconds at which requests arrive, ascending, without end unless the last step's rate is 0.

    Gaps are drawn for a rate of 1 and stretched by the rate in force, so that a gap may begin in one step and end in
    the next (time rescaling). Nothing arrives before the first step.

    Args:
        steps: times ascend; some rate is over 0.
        cv: as for `draw_arrivals`.
    """
    starts = np.array([step.start_s for step in steps])
    rates = np.array([step.rate_rps for step in steps])
    before = np.concatenate([[0.0], np.cumsum(np.diff(starts) * rates[:-1])])  # mean arrivals up to each step
    total = 0.0
    while True:
        counts = total + np.cumsum(_draw_gaps(rng, process, 1.0, cv))
        total = float(counts[-1])
        index = np.searchsorted(before, counts, side="left") - 1
        if not rates[-1]:
            index = index[counts <= before[-1]]
        times = starts[index] + (counts[: len(index)] - before[index]) / rates[index]
        yield from times.tolist()
        if len(index) < len(counts):
            return


def _draw_gaps(rng: np.random.Generator, process: Process, rate_rps: float, cv: float) -> NDArray[np.float64]:
    match process:
        case Process.POISSON:
            return rng.exponential(1 / rate_rps, DRAWN_AT_ONCE)
        case Process.GAMMA:
            return rng.gamma(cv**-2, cv**2 / rate_rps, DRAWN_AT_ONCE)
        case Process.CONSTANT:
            return np.full(DRAWN_AT_ONCE, 1 / rate_rps)
        case _:
            assert_never(process)
