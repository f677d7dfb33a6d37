"""Who asks for a request, and what its class wants done when its goals cannot be met.

Knows no limits, goals or queues: values that gateway, queue and placement pass on.
"""

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_TENANT = "default"  # of requests that name none


class OnMiss(StrEnum):
    """What to do with a request for which no plan meets the goals."""

    HOLD = "hold"  # let it wait for a better moment
    BEST_EFFORT = "best_effort"  # take the plan that misses by the least
    REJECT = "reject"  # refuse it, and say when to come back


@dataclass(frozen=True, slots=True)
class Standing:
    """How one request stands among others, beside its priority."""

    tenant: str = DEFAULT_TENANT
    on_miss: OnMiss = OnMiss.BEST_EFFORT
    deadline_s: float = float("inf")  # from arrival to the first token: later is too late


USUAL = Standing()  # of a request that says nothing of itself
