"""What became of one offered request, with every second of it accounted for.

Knows no percentile and no world: made when a request ends, and told to observers.
"""

from dataclasses import dataclass
from enum import StrEnum

from twinpool.core.messages import Goal
from twinpool.simulator.trace import TraceRequest


class Ending(StrEnum):
    """How an offered request ended, as its client saw it."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # refused early: overloaded, or no worker can ever take it
    FAILED = "failed"  # any other error
    CUT = "cut"  # it still ran when the run ended


@dataclass(frozen=True, slots=True)
class Outcome:
    """One offered request. Times are seconds of virtual time from the begin of the trace; durations are seconds.

    The phases of a completed request add up to ``first_token_s - arrival_s``: held in the router, queued on the
    prefill worker, computed there, and ``other_s`` (messages, and attempts that came to nothing).
    """

    index: int  # place in the trace, from 0
    offered: TraceRequest
    goal: Goal
    ending: Ending
    why: str = ""  # of anything but completed
    arrival_s: float = 0.0
    first_token_s: float | None = None
    end_s: float = 0.0
    num_tokens: int = 0  # delivered
    attempts: int = 1
    cached_tokens: int = 0  # of the prompt, not computed by the last attempt's prefill
    held_s: float = 0.0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    handoff_s: float = 0.0  # first token sampled to joining the decode batch
    wire_s: float = 0.0  # that its bytes were on a link
    exposed_s: float = 0.0  # of wire_s, after the prefill ended
    kv_bytes: int = 0
    prefill_worker: int | None = None  # place in Scenario.workers, of the last attempt
    decode_worker: int | None = None

    @property
    def ttft_s(self) -> float | None:
        """Arrival to first token; None where there was none."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean gap between later tokens of a completed request; None for fewer than two."""
        if self.ending is not Ending.COMPLETED or self.first_token_s is None or self.num_tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.num_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Arrival to end."""
        return self.end_s - self.arrival_s

    @property
    def met(self) -> bool:
        """Whether it completed within both bounds. TPOT counts as met with a single token."""
        ttft_s, tpot_s = self.ttft_s, self.tpot_s
        if self.ending is not Ending.COMPLETED or ttft_s is None or ttft_s > self.goal.ttft_s:
            return False
        return tpot_s is None or tpot_s <= self.goal.tpot_s
