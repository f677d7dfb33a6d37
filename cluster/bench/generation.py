"""What either side of `bench engine` gives back of one run, and the prompts that both are given.

Knows neither side.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class GenerationTimes:
    """One answer's, in seconds from the begin of its run."""

    ttft_s: float
    tpot_s: float | None  # None for a single token


@dataclass(frozen=True, slots=True)
class Generations:
    """All answers of one run, in order of the prompts."""

    token_ids: list[list[int]]
    wall_s: float  # from handing the prompts over to the last token
    times: list[GenerationTimes] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.token_ids)) / self.wall_s


def draw_prompts(rng: np.random.Generator, count: int, num_tokens: int, vocab_size: int) -> list[list[int]]:
    """Prompts of random ids, so that no two share a block that a prefix cache could help with."""
    return [prompt.tolist() for prompt in rng.integers(0, vocab_size, size=(count, num_tokens))]
