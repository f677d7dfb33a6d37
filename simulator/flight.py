"""One request of a simulated gateway until it ends: what is known of it so far, and what is made of that at its end.

Decides nothing and sends nothing.
"""

from dataclasses import dataclass
from functools import lru_cache

from twinpool.core.messages import Request
from twinpool.core.sampling import SamplingParams
from twinpool.router.standing import DEFAULT_TENANT, Standing
from twinpool.router.waiting import Placing
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.news import Arrival, FirstToken
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.scenario import GoalClass
from twinpool.simulator.trace import TraceRequest


@dataclass(slots=True, eq=False)
class Flight:
    """One request of this gateway that has not ended."""

    index: int
    offered: TraceRequest
    goals: GoalClass
    standing: Standing
    attempt: Attempt | None = None  # the latest that was placed
    parked: Attempt | None = None  # whose KV waits for another target
    placed_s: float | None = None  # first
    first: FirstToken | None = None
    first_s: float | None = None
    arrival: Arrival | None = None
    prefill_worker: int | None = None
    decode_worker: int | None = None

    def outcome(self, now: float, ending: Ending, why: str, num_tokens: int, attempts: int) -> Outcome:
        """What became of it, as it ends now."""
        first, arrival = self.first, self.arrival
        held_s = (now if self.placed_s is None else self.placed_s) - self.offered.arrival_s
        return Outcome(
            index=self.index,
            offered=self.offered,
            goal=self.goals.goal,
            ending=ending,
            why=why,
            arrival_s=self.offered.arrival_s,
            first_token_s=self.first_s,
            end_s=now,
            num_tokens=num_tokens,
            attempts=attempts,
            cached_tokens=0 if first is None else first.cached_tokens,
            held_s=held_s,
            queued_s=0.0 if first is None else first.queued_s,
            prefill_s=0.0 if first is None else first.prefill_s,
            handoff_s=0.0 if arrival is None else arrival.handoff_s,
            wire_s=0.0 if arrival is None else arrival.wire_s,
            exposed_s=0.0 if arrival is None else arrival.transfer.exposed_s,
            kv_bytes=0 if arrival is None else arrival.transfer.num_bytes,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
        )


def standing_of(offered: TraceRequest, goals: GoalClass) -> Standing:
    """Whose it is, and how long it may wait."""
    deadline_s = float("inf") if goals.deadline_s is None else goals.deadline_s
    return Standing(offered.tenant or DEFAULT_TENANT, goals.on_miss, deadline_s)


def placing_of(
    request: Request, flight: Flight, avoid: frozenset[str] = frozenset(), parked_on: str | None = None
) -> Placing:
    """An attempt that is to wait for a worker."""
    return Placing(request, flight.offered.arrival_s, float("inf"), avoid, parked_on, flight.standing)


def request_of(index: int, offered: TraceRequest, goals: GoalClass) -> Request:
    """The first attempt."""
    return Request(
        request_id=f"r{index:08}",
        epoch=1,
        token_ids=zeros(offered.prompt_tokens),
        num_prompt_tokens=offered.prompt_tokens,
        sampling=_sampling(offered.max_tokens or offered.output_tokens),
        goal=goals.goal,
        priority=goals.priority,
        tenant_salt=offered.tenant,
    )


@lru_cache(maxsize=1024)
def zeros(num_tokens: int) -> tuple[int, ...]:
    """Tokens whose values nobody looks at; shared, as a million prompts of a thousand would fill the memory."""
    return (0,) * num_tokens


@lru_cache(maxsize=8192)
def _sampling(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=0)
