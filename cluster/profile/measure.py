"""Has a worker run a grid of bursts, again and again while there is time, and sums its steps up as rows to fit.

Knows bursts and steps; no form, no file.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from statistics import median

import numpy as np

from twinpool.cluster.profile.grid import Burst, predict_seconds
from twinpool.cluster.profile.probe import Answer, Probe, make_request, wait_for
from twinpool.cluster.profile.rows import Row, TimedStep, sum_up
from twinpool.core.errors import Internal

NUM_PINGS = 20
NUM_WARM_UP = 4
PING_TOKENS = 8
PAUSE_S = 5e-3  # for the worker to fall asleep


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
        self._runs: dict[Burst, list[list[TimedStep]]] = defaultdict(list)
        self._token_s = 0.0  # about what a prompt token takes, and a decode step
        self._step_s = 0.0

    def prompt(self, num_tokens: int) -> list[int]:
        """Random tokens."""
        ids: list[int] = self._rng.integers(0, self._vocab_size, num_tokens).tolist()
        return ids

    def send(self, prompt: Sequence[int], new_tokens: int) -> Answer:
        """Order one answer."""
        return self._probe.prefill(make_request(f"profile-{next(self._numbers)}", prompt, new_tokens))

    async def ping(self) -> Ping:
        """Smallest prompts, one at a time."""
        await self._probe.take_steps()
        trips_s = []
        for _ in range(NUM_PINGS):
            await asyncio.sleep(PAUSE_S)
            answer = self.send(self.prompt(PING_TOKENS), 1)
            await wait_for([answer])
            trips_s.append(answer.token_times_s[0] - answer.sent_s)
        await asyncio.sleep(PAUSE_S)
        steps = await self._probe.take_steps()
        ways_s = [(trip_s - step.seconds) / 2 for trip_s, step in zip(trips_s, steps, strict=True)]
        return Ping(max(0.0, median(ways_s)), median(step.seconds for step in steps))

    async def run(self, bursts: Sequence[Burst], *, until_s: float, max_rounds: int) -> None:
        """Run all bursts in turns until ``time.monotonic()`` would pass ``until_s``; a few more, first, to warm up.

        Raises:
            Internal: there was not even time for one of them.
        """
        for burst in bursts[:NUM_WARM_UP]:
            self._learn(await self._run_burst(burst))
        cost_s: dict[Burst, float] = {}
        for _ in range(max_rounds):
            for burst in bursts:
                begun_s = time.monotonic()
                if begun_s + cost_s.get(burst, self._predict(burst)) > until_s:
                    continue
                steps = await self._run_burst(burst)
                self._learn(steps)
                self._runs[burst].append(steps)
                cost_s[burst] = time.monotonic() - begun_s
        if not self._runs:
            raise Internal("there was no time to measure anything: the model is too slow for this grid")

    def _learn(self, steps: list[TimedStep]) -> None:
        """What a burst says of how long others will take."""
        prefills = [step for step in steps if step.prefill_tokens and not step.batch]
        if prefills:
            self._token_s = sum(step.seconds for step in prefills) / sum(step.prefill_tokens for step in prefills)
        decodes = [step for step in steps if step.batch and not step.prefill_tokens]
        if decodes:
            self._step_s = median(step.seconds for step in decodes)

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
        """What was measured; where a burst ran more than once, without what came up in one run only."""
        rows = []
        for runs in self._runs.values():
            rows += sum_up(chain.from_iterable(runs), least=min(2, len(runs)))
        return rows
