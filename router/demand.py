"""What one request asks of the cluster, in the numbers that policies look at.

Knows nothing of workers, tokens' values or the client.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from twinpool.core.messages import Goal, Request
from twinpool.router.standing import OnMiss

# Of a request: [N] its leading tokens that each of the named workers has cached. None: nothing is known to be cached.
CachedTokens = Callable[[Request, tuple[str, ...]], NDArray[np.int64] | None]


@dataclass(frozen=True, slots=True)
class Demand:
    """One attempt of a request, to be placed.

    ``avoid`` names workers to use only when no other will do. With ``parked_on`` set, that worker already holds the
    KV of all ``num_tokens`` tokens, and only the decode worker is to be chosen.

    ``cached_tokens`` [N] are those of the ``num_tokens``, from the start and never all of them, that are in the prefix
    cache of each worker of the view, as far as the gateway knows. None: nothing is known to be cached.
    """

    num_tokens: int  # to prefill: the prompt and what earlier attempts generated
    max_new_tokens: int
    goal: Goal
    age_s: float = 0.0  # since the request arrived
    avoid: frozenset[str] = frozenset()
    parked_on: str | None = None
    cached_tokens: NDArray[np.int64] | None = field(default=None, compare=False)
    on_miss: OnMiss = OnMiss.BEST_EFFORT  # what its class wants where no plan meets the goal; no policy asks yet

    @classmethod
    def of(
        cls,
        request: Request,
        *,
        avoid: frozenset[str] = frozenset(),
        parked_on: str | None = None,
        age_s: float | None = None,
        cached_tokens: NDArray[np.int64] | None = None,
        on_miss: OnMiss = OnMiss.BEST_EFFORT,
    ) -> Self:
        """The demand of one attempt as the ledger hands it out. ``age_s`` is what its age has become since."""
        age_s = request.age_s if age_s is None else age_s
        num_tokens, max_new_tokens = len(request.token_ids), request.max_new_tokens
        return cls(num_tokens, max_new_tokens, request.goal, age_s, avoid, parked_on, cached_tokens, on_miss)

    @property
    def peak_tokens(self) -> int:
        """Tokens whose KV exists at the very end; the last token sampled is never written."""
        return self.num_tokens + self.max_new_tokens - 1

    @property
    def decodes(self) -> bool:
        """Whether anything is left to decode after the prefill's own token."""
        return self.max_new_tokens > 1

    def uncached_tokens(self, num_workers: int) -> NDArray[np.int64]:
        """[N] tokens that each worker would have to compute."""
        if self.cached_tokens is None:
            return np.full(num_workers, self.num_tokens, np.int64)
        return self.num_tokens - self.cached_tokens
