"""Times handoffs between two workers, over the link that the cluster would choose for them.

Knows orders and what comes back; neither links nor batching.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from twinpool.cluster.profile.measure import Measurement
from twinpool.cluster.profile.probe import Probe, make_request, wait_for
from twinpool.router.estimate import LinkCost, fit_link

WARM_UP = 3
SHORT_TOKENS = 32


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
        latency_s = median(row.handoff_s for row in short)
        return Handoffs(LinkCost(latency_s, _bytes_per_s(rows)), self._source.hello.link, rows)

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
        self._number += 1
        request = make_request(f"handoff-{self._number}", prompt, 2)
        answer = self._source.prefill(request, self._target.address)
        self._target.reserve(request, self._source.address)
        await wait_for([answer])
        (step,) = await self._target.take_steps()
        gap_s = answer.token_times_s[1] - answer.token_times_s[0]
        return HandoffRow(num_tokens, answer.kv_bytes, max(0.0, gap_s - step.seconds), answer.wire_s, 1)


def _bytes_per_s(rows: Sequence[HandoffRow]) -> float:
    """By how much longer more bytes are on the wire; where no longer, at least as fast as the fastest of all."""
    sizes = np.array([row.kv_bytes for row in rows], dtype=np.float64)
    wires_s = np.array([max(row.wire_s, 1e-9) for row in rows], dtype=np.float64)
    found = fit_link(sizes, wires_s).bytes_per_s
    return found if np.isfinite(found) else float((sizes / wires_s).max())
