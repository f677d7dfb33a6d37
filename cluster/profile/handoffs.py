"""Times handoffs between two workers, over the link that the cluster would choose for them.

Knows orders and what comes back; neither links nor batching.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from twinpool.cluster.profile.measure import Measurement
from twinpool.cluster.profile.probe import Answer, Probe, make_request, wait_for
from twinpool.cluster.profile.rows import TimedStep
from twinpool.router.estimate import LinkCost, fit_link

WARM_UP = 3
SHORT_TOKENS = 32
JOIN_BATCH, JOIN_STEPS = 8, 12


@dataclass(frozen=True, slots=True)
class HandoffRow:
    """Handoffs of one size, all of whose KV was there when they began; medians."""

    num_tokens: int
    kv_bytes: int
    handoff_s: float  # from the first token to the begin of the step that the sequence decodes in
    wire_s: float  # that some group was on the link
    samples: int


@dataclass(frozen=True, slots=True)
class Handoffs:
    """What moving KV costs. ``cost`` is made of ``rows`` and of handoffs of short prompts that were streamed."""

    cost: LinkCost
    link: str
    rows: tuple[HandoffRow, ...]
    send_s: float  # what the source's engine does for a handoff beside computing the prompt
    join_s: float  # what the target's engine does for a sequence that arrives, and ends, beside decoding it


class HandoffMeasurement:
    """Owns the measurements between a source and a target, both idle otherwise."""

    def __init__(self, source: Probe, target: Probe, prompts: Measurement) -> None:
        self._source = source
        self._target = target
        self._prompts = prompts
        self._number = 0

    async def run(self, sizes: Sequence[int], repeats: int) -> Handoffs:
        """Hand prompts of so many tokens over, each several times."""
        for _ in range(WARM_UP):
            await self._hand_over(SHORT_TOKENS, is_cached=False)
        short = [await self._hand_over(SHORT_TOKENS, is_cached=False) for _ in range(3 * repeats)]
        rows = tuple([await self._row(size, repeats) for size in sizes])
        return Handoffs(
            cost=LinkCost(median(row.handoff_s for row in short), _bytes_per_s(rows)),
            link=self._source.hello.link,
            rows=rows,
            send_s=await self._measure_send(3 * repeats),
            join_s=await self._measure_join(3 * repeats),
        )

    async def _measure_send(self, repeats: int) -> float:
        """How much longer the step of a prompt is when its KV goes to another worker than when it goes nowhere."""
        alone, sent = list[float](), list[float]()
        for _ in range(repeats):
            await self._source.take_steps()
            await wait_for([self._prompts.send(self._prompts.prompt(SHORT_TOKENS), 1)])
            alone += [step.seconds for step in await self._source.take_steps()]
            await self._hand_over(SHORT_TOKENS, is_cached=False)
            sent += [step.seconds for step in await self._source.take_steps()]
        return max(0.0, median(sent) - median(alone))

    async def _measure_join(self, repeats: int) -> float:
        """How much longer a decode step is when a sequence has just arrived, beside being one sequence longer.

        What one sequence more takes is told by steps of sequences that were there before.
        """
        seconds: dict[int, list[float]] = {}
        for batch in (JOIN_BATCH, JOIN_BATCH + 1):
            decoding = self._decode(batch, JOIN_STEPS)
            await wait_for(decoding)
            seconds[batch] = [s.seconds for s in await self._target.take_steps() if _decodes(s, batch)]
        decoding = self._decode(JOIN_BATCH, JOIN_STEPS * repeats)
        await wait_for(decoding, first_token=True)
        while not all(answer.is_over.is_set() for answer in decoding) and repeats:
            repeats -= 1
            await self._start(self._prompts.prompt(SHORT_TOKENS)).is_over.wait()
        await wait_for(decoding)
        joined = [s.seconds for s in await self._target.take_steps() if _decodes(s, JOIN_BATCH + 1)]
        return max(0.0, median(joined) - median(seconds[JOIN_BATCH + 1])) if joined else 0.0

    def _decode(self, batch: int, new_tokens: int) -> list[Answer]:
        """Have the target decode so many short sequences of its own."""
        return [
            self._target.prefill(make_request(self._name(), self._prompts.prompt(SHORT_TOKENS), new_tokens))
            for _ in range(batch)
        ]

    async def _row(self, num_tokens: int, repeats: int) -> HandoffRow:
        found = [await self._hand_over(num_tokens, is_cached=True) for _ in range(repeats)]
        return HandoffRow(
            num_tokens,
            found[0].kv_bytes,
            median(each.handoff_s for each in found),
            median(each.wire_s for each in found),
            len(found),
        )

    async def _hand_over(self, num_tokens: int, *, is_cached: bool) -> HandoffRow:
        """One handoff. What both workers' messages take on their way to us cancels out."""
        prompt = self._prompts.prompt(num_tokens)
        if is_cached:
            await wait_for([self._prompts.send(prompt, 1)])
        await self._target.take_steps()
        answer = self._start(prompt)
        await wait_for([answer])
        (step,) = await self._target.take_steps()
        gap_s = answer.token_times_s[1] - answer.token_times_s[0]
        return HandoffRow(num_tokens, answer.kv_bytes, max(0.0, gap_s - step.seconds), answer.wire_s, 1)

    def _start(self, prompt: Sequence[int]) -> Answer:
        request = make_request(self._name(), prompt, 2)
        answer = self._source.prefill(request, self._target.address)
        self._target.reserve(request, self._source.address)
        return answer

    def _name(self) -> str:
        self._number += 1
        return f"handoff-{self._number}"


def _decodes(step: TimedStep, batch: int) -> bool:
    return step.batch == batch and not step.prefill_tokens


def _bytes_per_s(rows: Sequence[HandoffRow]) -> float:
    """By how much longer more bytes are on the wire; where no longer, at least as fast as the fastest of all."""
    sizes = np.array([row.kv_bytes for row in rows], dtype=np.float64)
    wires_s = np.array([max(row.wire_s, 1e-9) for row in rows], dtype=np.float64)
    found = fit_link(sizes, wires_s).bytes_per_s
    return found if np.isfinite(found) else float((sizes / wires_s).max())
