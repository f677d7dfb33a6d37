"""How many requests a trace has, over what time, and how long they are: in one pass, exactly.

Knows no file. Memory grows with the number of different lengths, not of requests.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twinpool.simulator.trace import Trace

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Tokens:
    """How long prompts, or answers, of a trace are.

    ``std`` is that of the trace itself, and pNN the smallest length that NN % of all do not exceed: as the published
    figures of the Azure traces are.
    """

    mean: float
    std: float
    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True, slots=True)
class Description:
    """A trace in numbers."""

    requests: int
    duration_s: float  # from the first arrival to the last
    mean_rate_rps: float  # requests over duration; 0 where all come at once
    prompt_tokens: Tokens
    output_tokens: Tokens
    goal_classes: dict[str, int]

    def values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def describe(trace: Trace) -> Description | None:
    """Play a trace once and count. None: nothing came."""
    prompts: Counter[int] = Counter()
    outputs: Counter[int] = Counter()
    classes: Counter[str] = Counter()
    first_s = last_s = None
    for request in trace:
        first_s = request.arrival_s if first_s is None else first_s
        last_s = request.arrival_s
        prompts[request.prompt_tokens] += 1
        outputs[request.output_tokens] += 1
        classes[request.goal_class] += 1
    if first_s is None or last_s is None:
        return None
    requests, duration_s = prompts.total(), last_s - first_s
    return Description(
        requests=requests,
        duration_s=duration_s,
        mean_rate_rps=requests / duration_s if duration_s else 0.0,
        prompt_tokens=_summary(prompts),
        output_tokens=_summary(outputs),
        goal_classes=dict(sorted(classes.items())),
    )


def _summary(counted: Mapping[int, int]) -> Tokens:
    lengths = np.array(sorted(counted))
    counts = np.array([counted[length] for length in lengths.tolist()])
    total = int(counts.sum())
    mean = float((lengths * counts).sum() / total)
    variance = float((counts * (lengths - mean) ** 2).sum() / total)
    ranks = [-(-total * percentile // 100) for percentile in PERCENTILES]
    p50, p90, p99 = lengths[np.searchsorted(np.cumsum(counts), ranks)].tolist()
    return Tokens(mean, variance**0.5, p50, p90, p99, int(lengths[-1]))
