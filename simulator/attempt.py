"""One attempt of a request as simulated workers see it: lengths in place of tokens.

Knows no worker's state. What a real model would find out as it goes, the length of the answer, is known here to the
world alone: policies are shown limits and the lengths of answers that have ended.
"""

from dataclasses import dataclass
from enum import Enum

from twinpool.core.messages import Request
from twinpool.simulator.pool import Name


class Destination(Enum):
    """Where a prompt's KV goes after prefill."""

    HANDOFF = "handoff"
    LOCAL = "local"
    NOWHERE = "nowhere"  # the first token is the only one


@dataclass(slots=True, eq=False)
class Attempt:
    """What was ordered. One object, shared by the workers that have a part in it; nobody changes it."""

    request: Request
    index: int  # place in the trace
    gateway: int
    arrival_s: float
    output_tokens: int  # of the whole answer
    names: tuple[Name, ...]  # of the pieces of its prompt that may be shared
    piece_tokens: int  # of each of them

    @property
    def age_order(self) -> tuple[int, float, str]:
        """First come, first served within a priority; ties by id."""
        return (self.request.priority, self.arrival_s, self.request.request_id)

    @property
    def num_tokens(self) -> int:
        """To prefill: the prompt, and what earlier attempts said."""
        return len(self.request.token_ids)

    @property
    def first_index(self) -> int:
        """Of the token that its prefill samples."""
        return self.request.num_emitted

    @property
    def final_context(self) -> int:
        """Tokens whose KV exists when the answer is complete; the last token sampled is never written."""
        return self.request.num_prompt_tokens + self.output_tokens - 1

    def pieces_in(self, num_tokens: int) -> int:
        """How many of its pieces lie whole within its first ``num_tokens``."""
        return min(len(self.names), num_tokens // self.piece_tokens) if self.names else 0
