"""What one request asks of the cluster, in the numbers that policies look at.

Knows nothing of workers, tokens' values or the client.
"""

from dataclasses import dataclass
from typing import Self

from twinpool.core.messages import Goal, Request


@dataclass(frozen=True, slots=True)
class Demand:
    """One attempt of a request, to be placed.

    ``avoid`` names workers to use only when no other will do. With ``parked_on`` set, that worker already holds the
    KV of all ``num_tokens`` tokens, and only the decode worker is to be chosen.
    """

    num_tokens: int  # to prefill: the prompt and what earlier attempts generated
    max_new_tokens: int
    goal: Goal
    age_s: float = 0.0  # since the request arrived
    avoid: frozenset[str] = frozenset()
    parked_on: str | None = None

    @classmethod
    def of(cls, request: Request, *, avoid: frozenset[str] = frozenset(), parked_on: str | None = None) -> Self:
        """The demand of one attempt as the ledger hands it out."""
        return cls(len(request.token_ids), request.max_new_tokens, request.goal, request.age_s, avoid, parked_on)

    @property
    def peak_tokens(self) -> int:
        """Tokens whose KV exists at the very end; the last token sampled is never written."""
        return self.num_tokens + self.max_new_tokens - 1

    @property
    def decodes(self) -> bool:
        """Whether anything is left to decode after the prefill's own token."""
        return self.max_new_tokens > 1
