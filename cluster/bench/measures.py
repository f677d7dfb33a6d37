"""What happened to the requests of a load, and the numbers made of that: percentiles, attainment, goodput.

Pure arithmetic over times that others took; knows no clock and no client.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np

from twinpool.core.messages import Goal

Values = dict[str, Any]
PERCENTILES = (50, 90, 99)


class Ending(StrEnum):
    """How an offered request ended, as its client saw it."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # refused early: overloaded, or no workers
    FAILED = "failed"  # any other error
    CUT = "cut"  # it still ran when waiting ended, here or by the client's own limits


@dataclass(frozen=True, slots=True)
class Outcome:
    """One offered request; times in seconds from the begin of the load, by the client's clock."""

    ending: Ending
    prompt_tokens: int
    due_s: float  # when it should have been sent
    sent_s: float | None = None
    token_times_s: tuple[float, ...] = ()  # of each message with tokens
    num_tokens: int = 0
    ended_s: float | None = None
    why: str = ""  # of anything but completed

    @property
    def ttft_s(self) -> float | None:
        """Sent to first token; None where there was none."""
        return self.token_times_s[0] - self.sent_s if self.token_times_s and self.sent_s is not None else None

    @property
    def tpot_s(self) -> float | None:
        """Mean gap between later tokens; None for fewer than two."""
        if self.num_tokens < 2:
            return None
        return (self.token_times_s[-1] - self.token_times_s[0]) / (self.num_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """Sent to last token."""
        return self.token_times_s[-1] - self.sent_s if self.token_times_s and self.sent_s is not None else None

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """ITL: between successive messages with tokens."""
        times = self.token_times_s
        return tuple(later - earlier for earlier, later in pairwise(times))

    @property
    def send_lag_s(self) -> float | None:
        """How much later it was sent than it was due: whether the client kept up with the load."""
        return None if self.sent_s is None else self.sent_s - self.due_s

    def meets(self, goal: Goal) -> bool:
        """Whether it completed within both bounds. TPOT counts as met with a single token."""
        if self.ending is not Ending.COMPLETED or self.ttft_s is None or self.ttft_s > goal.ttft_s:
            return False
        return self.tpot_s is None or self.tpot_s <= goal.tpot_s


def percentiles(values: Iterable[float | None]) -> dict[str, float | None]:
    """p50, p90 and p99 of the values that are there, interpolated linearly between neighbours; None where none is."""
    there = [value for value in values if value is not None]
    if not there:
        return {f"p{rank}": None for rank in PERCENTILES}
    found = np.percentile(np.array(there, dtype=np.float64), PERCENTILES)
    return {f"p{rank}": float(value) for rank, value in zip(PERCENTILES, found, strict=True)}


def summarise(outcomes: Sequence[Outcome], goal: Goal, wall_s: float, num_workers: int) -> Values:
    """The numbers of one load, in the keys that `simulate` has too, and more.

    Args:
        outcomes: of every request offered; attainment is a share of these. At least one.
        wall_s: the time that rates are per: begin of the load to the end of its last request. Over 0.
        num_workers: prefill and decode together, each in the place of a GPU.

    Latencies are those of completed requests.
    """
    done = [outcome for outcome in outcomes if outcome.ending is Ending.COMPLETED]
    met = sum(outcome.meets(goal) for outcome in outcomes)
    counts = {str(ending): sum(outcome.ending is ending for outcome in outcomes) for ending in Ending}
    return {
        "requests": len(outcomes),
        **counts,
        "met": met,
        "slo_attainment": met / len(outcomes),
        "goodput_rps": met / wall_s,
        "goodput_rps_per_gpu": met / wall_s / num_workers,
        "ttft_s": percentiles([outcome.ttft_s for outcome in done]),
        "tpot_s": percentiles([outcome.tpot_s for outcome in done]),
        "itl_s": percentiles([gap for outcome in done for gap in outcome.gaps_s]),
        "e2e_s": percentiles([outcome.e2e_s for outcome in done]),
        "send_lag_s": percentiles([outcome.send_lag_s for outcome in outcomes]),
        "requests_per_s": len(done) / wall_s,
        "tokens_per_s": sum(outcome.num_tokens for outcome in outcomes) / wall_s,
        "prompt_tokens_per_s": sum(outcome.prompt_tokens for outcome in done) / wall_s,
        "wall_s": wall_s,
        "workers": num_workers,
        "goal": {"ttft_s": goal.ttft_s, "tpot_s": goal.tpot_s},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest and largest of repeated measurements."""
    return {"min": min(values), "max": max(values)}


def ratio(value: float | None, base: float | None) -> float | None:
    """``value / base``; None where either is missing or the base is 0."""
    return None if value is None or not base else value / base
