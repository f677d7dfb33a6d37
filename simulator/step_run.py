"""Steps under way in a simulated engine: what they compute, how long that takes, and how many are over by when.

Knows a step form and arithmetic; neither decides nor applies.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.router.estimate import StepForm
from twinpool.simulator.prompt_queue import Prompt
from twinpool.simulator.world import Timer

MOST_STEPS = 16  # in one go: a live worker tells its load after each, so no more than this is told late


@dataclass(slots=True)
class StepRun:
    """Decode steps one after another whose decision stays the same, or one step with chunks of prompts."""

    form: StepForm
    factor: float  # how many times as long as the form says they take
    started_s: float
    num_steps: int
    rows: NDArray[np.intp]  # places of the sequences that decode
    context_tokens: int  # of the rows, when the first step began
    prompts: list[Prompt]  # whose chunks the step computes
    extra_s: float = 0.0  # of the first step, beside what the form says
    mean_noise: tuple[float, ...] = ()  # of the first step, of the first two, ...; empty: there is none
    first_end: int = 0  # steps until the first answer of the rows is complete
    timer: Timer | None = None
    is_cut: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Of all chunks."""
        return sum([prompt.chunk_tokens for prompt in self.prompts])

    @property
    def prompt_squares(self) -> int:
        """Of all chunks; see `StepForm.seconds`."""
        return sum(
            [(prompt.num_computed + prompt.chunk_tokens) ** 2 - prompt.num_computed**2 for prompt in self.prompts]
        )

    def seconds(self, num_steps: int) -> float:
        """What the first ``num_steps`` of them take together; more than fewer do."""
        batch = len(self.rows)
        if self.prompts:
            tokens, squares = float(self.prompt_tokens), float(self.prompt_squares)
            seconds = self.form.seconds(tokens, squares, float(self.context_tokens + batch), float(batch))
        else:
            seconds = self.form.decode_seconds(self.context_tokens + batch, batch, num_steps)
        if not self.mean_noise:
            return self.factor * (seconds + self.extra_s)
        return self.factor * (self.mean_noise[num_steps - 1] * seconds + self.mean_noise[0] * self.extra_s)

    def steps_done(self, now: float) -> int:
        """How many of them are over: as many as took the same share of the time, give or take a few."""
        elapsed_s = now - self.started_s
        num_done = min(self.num_steps, int(self.num_steps * elapsed_s / self.seconds(self.num_steps)))
        while num_done < self.num_steps and self.seconds(num_done + 1) <= elapsed_s:
            num_done += 1
        while num_done and self.seconds(num_done) > elapsed_s:
            num_done -= 1
        return num_done


def draw_mean_noise(draw: random.Random, sigma: float, num_steps: int) -> tuple[float, ...]:
    """What noise multiplies the time of the first 1, 2, ... ``num_steps`` steps by.

    Each step's is lognormal, of mean 1, and independent of the others': so a run that is cut short has the noise of the
    steps that it ran. Empty where ``sigma`` is 0.
    """
    if not sigma:
        return ()
    means, total = [], 0.0
    for number in range(1, num_steps + 1):
        total += math.exp(sigma * draw.gauss(0.0, 1.0) - sigma * sigma / 2)
        means.append(total / number)
    return tuple(means)
