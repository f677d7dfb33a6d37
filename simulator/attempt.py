"""One attempt of a request as simulated workers see it: lengths in place of tokens.

Knows no worker's state. What a real model would find out as it goes, the length of the answer, is known here to the
world alone: policies are shown limits and the lengths of answers that have ended.
"""

from dataclasses import dataclass, field
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

    # What follows from these is asked for many times.
    age_order: tuple[int, float, str] = field(init=False)  # first come, first served within a priority; ties by id
    num_tokens: int = field(init=False)  # to prefill: the prompt, and what earlier attempts said
    first_index: int = field(init=False)  # of the token that its prefill samples
    final_context: int = field(init=False)  # tokens with KV when the answer is complete; the last one never has any

    def __post_init__(self) -> None:
        request = self.request
        self.age_order = (request.priority, self.arrival_s, request.request_id)
        self.num_tokens = len(request.token_ids)
        self.first_index = request.num_emitted
        self.final_context = request.num_prompt_tokens + self.output_tokens - 1

    def pieces_in(self, num_tokens: int) -> int:
        """How many of its pieces lie whole within its first ``num_tokens``."""
        return min(len(self.names), num_tokens // self.piece_tokens) if self.names else 0
