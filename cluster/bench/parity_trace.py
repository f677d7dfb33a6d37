"""The load that a live cluster and a simulated one are both offered, drawn once for both.

Pure. Knows numbers; the live side adds prompts, the simulated one needs none.
"""

import math
from dataclasses import dataclass

import numpy as np

from twinpool.simulator.trace import TraceRequest
from twinpool.simulator.traces.arrivals import MAX_REQUESTS, Process, draw_arrivals


@dataclass(frozen=True, slots=True)
class Lengths:
    """From and up to how many tokens; drawn evenly on a log scale, so that short ones are as common as long ones."""

    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]

    @property
    def middle_prompt(self) -> int:
        """The median prompt."""
        return round(math.sqrt(self.prompt_tokens[0] * self.prompt_tokens[1]))


def draw_trace(
    lengths: Lengths, rate_rps: float, duration_s: float, seed: int, requests: int = MAX_REQUESTS
) -> list[TraceRequest]:
    """Poisson arrivals in that time, at most so many.

    Answers have exactly their length, which the client asks for as its limit.
    """
    rng = np.random.default_rng([seed, 0])
    arrivals_s = draw_arrivals(rng, Process.POISSON, rate_rps, duration_s=duration_s, requests=requests)
    rng = np.random.default_rng([seed, 1])  # so that a request's length does not depend on the rate
    return [
        TraceRequest(
            arrival_s=float(arrival_s),
            prompt_tokens=_draw(rng, lengths.prompt_tokens),
            output_tokens=_draw(rng, lengths.output_tokens),
        )
        for arrival_s in arrivals_s
    ]


def _draw(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    low, high = np.log(bounds[0]), np.log(bounds[1])
    return round(float(np.exp(rng.uniform(low, high))))
