"""Which requests may wait for a worker at all: bounds of the queue, of each tenant's part of it, and deadlines.

Knows no worker and no token; `now` is seconds of the gateway's monotonic clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from twinpool.router.fair_queue import FairQueue, FairSettings
from twinpool.router.tenants import NO_LIMITS, NO_TENANTS, TenantLimits


class RefusalReason(StrEnum):
    """Which bound refused a request."""

    QUEUE_FULL = "the router's queue is full"
    TENANT_SHARE = "tenant {} fills its queue_share of the router's queue"
    DEADLINE = "its deadline cannot be met any more"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may wait."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request may not wait; ``retry_after_s`` is how long the queue takes to move on, as far as can be told."""

    reason: RefusalReason
    retry_after_s: float
    tenant: str = ""  # whose bound it is, where it is a tenant's


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Bounds of one gateway's queue, and the standing of those who wait in it."""

    max_queued: int = 1024
    min_retry_after_s: float = 1.0
    max_retry_after_s: float = 30.0
    fair: FairSettings = field(default_factory=FairSettings)
    tenants: Mapping[str, TenantLimits] = field(default_factory=lambda: NO_TENANTS)

    def max_queued_of(self, limits: TenantLimits) -> int:
        """So many of a tenant's requests may wait: its share, but one where any may."""
        return max(min(1, self.max_queued), int(limits.queue_share * self.max_queued))


@dataclass(frozen=True, slots=True)
class Applicants:
    """Requests of one tenant that would have to wait, all or none of them."""

    num_requests: int
    deadline_at: float = float("inf")  # they must start by then
    tenant: str = ""
    limits: TenantLimits = NO_LIMITS  # the tenant's
    num_promised: int = 0  # others' places that are spoken for, though they do not wait yet
    num_promised_of_tenant: int = 0  # of those, its own


def admit(queue: FairQueue, who: Applicants, settings: AdmissionSettings, now: float) -> Admitted | Refused:
    """Whether so many more requests may wait. Changes nothing.

    The queue moves about as fast as its oldest request waited, so a refused one is asked to come back after that time.
    """
    if who.deadline_at <= now:
        return Refused(RefusalReason.DEADLINE, 0.0)
    if len(queue) + who.num_promised + who.num_requests > settings.max_queued:
        return Refused(RefusalReason.QUEUE_FULL, _retry_after_s(queue, settings, now))
    num_own = queue.num_of(who.tenant) + who.num_promised_of_tenant + who.num_requests
    if num_own > settings.max_queued_of(who.limits):
        return Refused(RefusalReason.TENANT_SHARE, _retry_after_s(queue, settings, now), who.tenant)
    return Admitted()


def _retry_after_s(queue: FairQueue, settings: AdmissionSettings, now: float) -> float:
    return min(settings.max_retry_after_s, max(settings.min_retry_after_s, queue.oldest_wait_s(now)))
