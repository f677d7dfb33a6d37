"""Offers a load to a running cluster, open loop: each request leaves when it is due, whatever became of those before.

Everything is measured here, at the client. Knows no goals' arithmetic; cluster/bench/measures.py has it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.client.client import AsyncClient
from twinpool.cluster.bench.measures import Ending, Outcome
from twinpool.core.errors import DeadlineExceeded, NoWorkers, Overloaded, TwinpoolError
from twinpool.core.messages import Goal
from twinpool.simulator.traces.lengths import Length


@dataclass(frozen=True, slots=True)
class Offer:
    """One request of a load; ``due_s`` counts from its begin."""

    due_s: float
    prompt: list[int]
    new_tokens: int


def make_offers(
    rng: np.random.Generator, arrivals_s: NDArray[np.float64], lengths: Sequence[Length], vocab_size: int
) -> list[Offer]:
    """Give each arrival a prompt of random ids and a length; lengths are taken in order, again and again."""
    offers = []
    for number, due_s in enumerate(arrivals_s):
        length = lengths[number % len(lengths)]
        prompt = rng.integers(0, vocab_size, length.prompt_tokens).tolist()
        offers.append(Offer(float(due_s), prompt, length.new_tokens))
    return offers


async def offer_load(
    client: AsyncClient, offers: Sequence[Offer], goal: Goal | None, drain_s: float, goal_class: str | None = None
) -> tuple[list[Outcome], float]:
    """Send every offer when it is due; returns what became of each, in order, and the seconds all of it took.

    Args:
        goal: sent along with each request; None leaves it to its class.
        goal_class: likewise; None for the cluster's default.
        drain_s: how long after the last arrival to wait; what still runs then is cancelled, and counts as cut.
    """
    begin_s = time.monotonic()
    streams = [_Stream(offer, begin_s) for offer in offers]
    tasks = [asyncio.create_task(stream.run(client, goal, goal_class)) for stream in streams]
    try:
        await asyncio.wait(tasks, timeout=offers[-1].due_s + drain_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    outcomes = [stream.outcome() for stream in streams]
    return outcomes, max((outcome.ended_s or 0.0 for outcome in outcomes), default=0.0)


class _Stream:
    """One request: waits until it is due, streams the answer, notes the times."""

    def __init__(self, offer: Offer, begin_s: float) -> None:
        self._offer = offer
        self._begin_s = begin_s
        self._sent_s: float | None = None
        self._ended_s: float | None = None
        self._times_s: list[float] = []
        self._num_tokens = 0
        self._ending = Ending.CUT
        self._why = "still ran when waiting ended"

    async def run(self, client: AsyncClient, goal: Goal | None, goal_class: str | None) -> None:
        """Ends by itself, or is cancelled from outside and then was cut."""
        await asyncio.sleep(max(0.0, self._offer.due_s - self._now()))
        try:
            await self._stream(client, goal, goal_class)
            self._end(Ending.COMPLETED, "")
        except (Overloaded, NoWorkers) as error:
            self._end(Ending.REJECTED, str(error))
        except DeadlineExceeded as error:
            self._end(Ending.CUT, str(error))
        except TwinpoolError as error:
            self._end(Ending.FAILED, str(error))
        finally:
            self._ended_s = self._now()

    async def _stream(self, client: AsyncClient, goal: Goal | None, goal_class: str | None) -> None:
        self._sent_s = self._now()
        stream = client.stream(
            self._offer.prompt,
            goal=goal,
            goal_class=goal_class,
            max_tokens=self._offer.new_tokens,
            temperature=0.0,
            ignore_eos=True,
        )
        async with stream:
            async for event in stream:
                if event.token_ids:
                    self._times_s.append(self._now())
                    self._num_tokens += len(event.token_ids)

    def _now(self) -> float:
        return time.monotonic() - self._begin_s

    def _end(self, ending: Ending, why: str) -> None:
        self._ending, self._why = ending, why

    def outcome(self) -> Outcome:
        """What became of it, as far as it came."""
        return Outcome(
            ending=self._ending,
            prompt_tokens=len(self._offer.prompt),
            due_s=self._offer.due_s,
            sent_s=self._sent_s,
            token_times_s=tuple(self._times_s),
            num_tokens=self._num_tokens,
            ended_s=self._ended_s,
            why=self._why,
        )
