"""Times handoffs between two workers, over the link that the cluster would choose for them.

Knows orders and what comes back; neither links nor batching.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np

from twinpool.cluster.profile.measure import Measurement
from twinpool.cluster.profile.probe import Answer, Probe, make_request, wait_for
from twinpool.cluster.profile.rows import HandoffRow, Handoffs, TimedStep
from twinpool.router.estimate import LinkCost, fit_link

WARM_UP = 3
SHORT_TOKENS = 32
JOIN_BATCH, JOIN_STEPS = 16, 12


class HandoffMeasurement:
    """Owns the measurements between a source and a target, both idle otherwise."""

    def __init__(self, source: Probe, target: Probe, prompts: Measurement) -> None:
        self._source = source
        self._target = target
        self._prompts = prompts
        self._number = 0

    async def run(self, sizes: Sequence[int], middle_tokens: int, repeats: int) -> Handoffs:
        """Hand prompts of so many tokens over, each several times; and some of a middling size beside other work."""
        for _ in range(WARM_UP):
            await self._hand_over(SHORT_TOKENS, is_cached=False)
        short = [await self._hand_over(SHORT_TOKENS, is_cached=False) for _ in range(3 * repeats)]
        rows = tuple([await self._row(size, repeats) for size in sizes])
        return Handoffs(
            cost=LinkCost(median(row.handoff_s for row in short), _bytes_per_s(rows)),
            link=self._source.hello.link,
            rows=rows,
            send_s=await self._measure_send(middle_tokens, 3 * repeats),
            join_s=await self._measure_join(middle_tokens, 3 * repeats),
        )

    async def _measure_send(self, num_tokens: int, repeats: int) -> float:
        """How much longer the step of a prompt is when its KV goes to another worker than when it goes nowhere."""
        alone, sent = list[float](), list[float]()
        for _ in range(repeats):
            await self._source.take_steps()
            await wait_for([self._prompts.send(self._prompts.prompt(num_tokens), 1)])
            alone.append(sum(step.seconds for step in await self._source.take_steps()))
            await self._hand_over(num_tokens, is_cached=False)
            sent.append(sum(step.seconds for step in await self._source.take_steps()))
        return max(0.0, median(sent) - median(alone))

    async def _measure_join(self, num_tokens: int, repeats: int) -> float:
        """How much longer a decode step is when a sequence has just arrived than when it was there before."""
        batch = max(1, min(JOIN_BATCH, self._target.config.max_running - 1))
        await wait_for([*self._decode(batch, SHORT_TOKENS, JOIN_STEPS), *self._decode(1, num_tokens, JOIN_STEPS)])
        settled = [step.seconds for step in await self._target.take_steps() if _is_decode(step, batch + 1)]
        decoding = self._decode(batch, SHORT_TOKENS, JOIN_STEPS * repeats)
        await wait_for(decoding, first_token=True)
        while repeats and not any(answer.is_over.is_set() for answer in decoding):
            repeats -= 1
            await wait_for([self._start(self._prompts.prompt(num_tokens))])
        await wait_for(decoding)
        joined = [step.seconds for step in await self._target.take_steps() if _is_decode(step, batch + 1)]
        return max(0.0, median(joined) - median(settled)) if joined and settled else 0.0

    def _decode(self, batch: int, num_tokens: int, new_tokens: int) -> list[Answer]:
        """Have the target decode so many sequences of its own."""
        return [
            self._target.prefill(make_request(self._name(), self._prompts.prompt(num_tokens), new_tokens))
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


def _is_decode(step: TimedStep, batch: int) -> bool:
    return step.batch == batch and not step.prefill_tokens


def _bytes_per_s(rows: Sequence[HandoffRow]) -> float:
    """By how much longer more bytes are on the wire; where no longer, at least as fast as the fastest of all."""
    sizes = np.array([row.kv_bytes for row in rows], dtype=np.float64)
    wires_s = np.array([max(row.wire_s, 1e-9) for row in rows], dtype=np.float64)
    found = fit_link(sizes, wires_s).bytes_per_s
    return found if np.isfinite(found) else float((sizes / wires_s).max())
