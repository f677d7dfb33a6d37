"""Has a worker run a grid of bursts, again and again while there is time, and sums its steps up as rows to fit.

Knows bursts and steps; no form, no file.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

import numpy as np

from twinpool.cluster.profile.grid import Burst, predict_seconds
from twinpool.cluster.profile.probe import Answer, Probe, make_request, wait_for
from twinpool.cluster.profile.rows import Row, TimedStep, sum_up
from twinpool.core.errors import Internal

NUM_PINGS = 20
PING_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Ping:
    """A worker's smallest step, and a message to it and back without that step; medians."""

    message_s: float  # one way
    step_s: float


class Measurement:
    """Owns one worker's measurements. Prompts are random, so that none is cached but where it is wanted."""

    def __init__(self, probe: Probe, vocab_size: int, seed: int = 0) -> None:
        self._probe = probe
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(seed)
        self._numbers = count()
        self._steps: dict[Burst, list[TimedStep]] = defaultdict(list)
        self._rounds = 0

    def prompt(self, num_tokens: int) -> list[int]:
        """Random tokens."""
        ids: list[int] = self._rng.integers(0, self._vocab_size, num_tokens).tolist()
        return ids

    def send(self, prompt: Sequence[int], new_tokens: int) -> Answer:
        """Order one answer."""
        return self._probe.prefill(make_request(f"profile-{next(self._numbers)}", prompt, new_tokens))

    async def ping(self) -> Ping:
        """Smallest prompts, one at a time."""
        trips, steps_s = [], []
        await self._probe.take_steps()
        for _ in range(NUM_PINGS):
            answer = self.send(self.prompt(PING_TOKENS), 1)
            await wait_for([answer])
            (step,) = await self._probe.take_steps()
            trips.append(answer.token_times_s[0] - answer.sent_s - step.seconds)
            steps_s.append(step.seconds)
        return Ping(max(0.0, median(trips) / 2), median(steps_s))

    async def run(self, bursts: Sequence[Burst], *, until_s: float, max_rounds: int) -> None:
        """Run all bursts in turns until ``time.monotonic()`` would pass ``until_s``; a first one of each is warming up.

        Raises:
            Internal: there was not even time for one prompt.
        """
        cost_s: dict[Burst, float] = {}
        for _ in range(1 + max_rounds):
            for burst in bursts:
                begun_s = time.monotonic()
                if begun_s + cost_s.get(burst, self._predict(burst)) > until_s:
                    continue
                steps = await self._run_burst(burst)
                if burst in cost_s:
                    self._steps[burst] += steps
                else:
                    self._steps.setdefault(burst, [])
                    self._warm(steps)
                cost_s[burst] = time.monotonic() - begun_s
            self._rounds += 1
        if not any(self._steps.values()):
            raise Internal("there was no time to measure anything: the model is too slow for this grid")

    def _warm(self, steps: list[TimedStep]) -> None:
        """What the first run of a burst says of those to come."""
        prefills = [step for step in steps if step.prefill_tokens and not step.batch]
        if prefills:
            self._token_s = sum(step.seconds for step in prefills) / sum(step.prefill_tokens for step in prefills)
        decodes = [step for step in steps if step.batch and not step.prefill_tokens]
        if decodes:
            self._step_s = median(step.seconds for step in decodes)

    _token_s = 0.0
    _step_s = 0.0

    def _predict(self, burst: Burst) -> float:
        return 2 * predict_seconds(burst, self._token_s, self._step_s)

    async def _run_burst(self, burst: Burst) -> list[TimedStep]:
        shared = self.prompt(burst.cached_tokens)
        if shared:
            await wait_for([self.send(shared, 1)])
        await self._probe.take_steps()
        running = [self.send(self.prompt(burst.context_tokens), burst.decode_tokens) for _ in range(burst.batch)]
        await wait_for(running, first_token=True)
        for length in burst.prompts:
            own = length - burst.cached_tokens
            await wait_for([self.send([*shared, *self.prompt(own)], 1) for _ in range(burst.copies)])
        await wait_for(running)
        return await self._probe.take_steps()

    def rows(self) -> list[Row]:
        """All that was measured often enough."""
        return [row for steps in self._steps.values() for row in sum_up(steps, least=min(2, max(1, self._rounds - 1)))]
