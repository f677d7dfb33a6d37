"""Offers a trace to a live cluster, again and again with other prompts, and says what its clients saw.

Knows clients and traces; neither starts a cluster nor compares it with anything.
"""

import asyncio
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from twinpool.client.client import AsyncClient
from twinpool.client.timeout import Timeout
from twinpool.cluster.bench.load import Offer, offer_load
from twinpool.cluster.bench.measures import Ending, Outcome, percentiles
from twinpool.cluster.bench.parity_numbers import Values, numbers_of
from twinpool.core.messages import Goal
from twinpool.simulator.trace import TraceRequest

MAX_WAIT_S = 86_400.0
DRAIN_S = 120.0
WARM_UP_REQUESTS, WARM_UP_TOKENS = 16, 4
NUM_CALLS = 30


class LiveCluster:
    """One running cluster's client."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self.vocab_size = 0

    async def warm_up(self, prompt_tokens: int) -> None:
        """Open the links between all workers. Raises what a request raises: there is nothing to measure then."""
        async with self._client() as client:
            (model, *_) = await client.models()
            self.vocab_size = model.vocab_size
            rng = np.random.default_rng()
            prompts = [_prompt(rng, prompt_tokens, self.vocab_size) for _ in range(WARM_UP_REQUESTS)]
            answers = [
                client.generate(prompt, max_tokens=WARM_UP_TOKENS, temperature=0.0, ignore_eos=True)
                for prompt in prompts
            ]
            await asyncio.gather(*answers)

    async def measure_way(self, prompt_tokens: int) -> float:
        """Seconds that a request and its first token take between client and gateway, each way, while all is idle.

        The median, over requests of one token, of what the client saw beyond what its gateway did.
        """
        rng = np.random.default_rng()
        ways_s = []
        async with self._client() as client:
            for _ in range(NUM_CALLS):
                prompt = _prompt(rng, prompt_tokens, self.vocab_size)
                begun_s = time.monotonic()
                async with client.stream(prompt, max_tokens=1, temperature=0.0, ignore_eos=True) as stream:
                    seen_s = [time.monotonic() - begun_s async for event in stream if event.token_ids]
                ways_s.append((seen_s[0] - stream.result.timings.ttft_s) / 2)
        return max(0.0, median(ways_s))

    async def run(self, trace: Sequence[TraceRequest], goal: Goal, seed: tuple[int, ...]) -> Values:
        """Offer the trace once; prompts differ with every ``seed`` and trace, so that none is cached."""
        rng = np.random.default_rng([*seed, len(trace)])
        offers = [
            Offer(each.arrival_s, _prompt(rng, each.prompt_tokens, self.vocab_size), each.output_tokens)
            for each in trace
        ]
        async with self._client() as client:
            outcomes, _ = await offer_load(client, offers, goal, DRAIN_S)
        return _numbers(outcomes, goal)

    def _client(self) -> AsyncClient:
        timeout = Timeout(first_token_s=MAX_WAIT_S, between_tokens_s=MAX_WAIT_S, total_s=MAX_WAIT_S)
        return AsyncClient(self._addresses, timeout=timeout)


def _prompt(rng: np.random.Generator, num_tokens: int, vocab_size: int) -> list[int]:
    ids: list[int] = rng.integers(0, vocab_size, num_tokens).tolist()
    return ids


def _numbers(outcomes: Sequence[Outcome], goal: Goal) -> Values:
    done = [outcome for outcome in outcomes if outcome.ending is Ending.COMPLETED]
    numbers = numbers_of(
        [outcome.ttft_s for outcome in done],
        [outcome.tpot_s for outcome in done],
        sum(outcome.meets(goal) for outcome in outcomes),
        len(outcomes),
    )
    lag = percentiles(outcome.send_lag_s for outcome in outcomes)
    return numbers | {"completed": len(done), "send_lag_s_p90": lag["p90"]}
