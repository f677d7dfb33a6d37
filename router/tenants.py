"""What each tenant may have, what it has, and what it had: rates, requests that run, and counts for status.

Knows tenants by the names that their requests bear, which nobody has proved; knows no queue and no worker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from twinpool.router.standing import DEFAULT_TENANT
from twinpool.router.token_bucket import TokenBucket

OTHERS = "(others)"  # who shares one record when there are more names than are kept apart
MAX_TENANTS = 4096  # records kept of names that the YAML does not have
_FORGET_EVERY_S = 1.0
_LENGTH_WEIGHT = 0.05  # of the newest answer in the mean length of a tenant's answers


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of one tenant at one gateway. None: no limit."""

    tokens_per_s: float | None = None  # of prompts and answers together, over any longer time
    burst_tokens: float | None = None  # that may come at once; None: what comes in ten seconds
    max_running: int | None = None  # requests on workers; more wait
    weight: float = 1.0  # its share where tenants wait for the same
    queue_share: float = 1.0  # of the gateway's queue, that it may fill

    def bucket(self, now: float) -> TokenBucket | None:
        """A full one. None: its rate has no limit."""
        if self.tokens_per_s is None:
            return None
        burst_tokens = 10 * self.tokens_per_s if self.burst_tokens is None else self.burst_tokens
        return TokenBucket.full(self.tokens_per_s, burst_tokens, now)


NO_LIMITS = TenantLimits()
NO_TENANTS: Mapping[str, TenantLimits] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class OverRate:
    """A tenant has had more tokens than its rate allows; it may have the next after ``retry_after_s``."""

    tenant: str
    tokens_per_s: float
    retry_after_s: float

    @property
    def reason(self) -> str:
        return f"tenant {self.tenant} is over its tokens_per_s, {self.tokens_per_s:g}"


@dataclass(slots=True)
class TenantCounts:
    """What became of a tenant's requests since the gateway knows of it."""

    admitted: int = 0
    refused: int = 0
    running: int = 0
    prompt_tokens: int = 0  # of admitted requests; those of n answers to one prompt once
    output_tokens: int = 0


@dataclass(slots=True)
class _Record:
    limits: TenantLimits
    bucket: TokenBucket | None
    counts: TenantCounts = field(default_factory=TenantCounts)
    mean_output_tokens: float | None = None  # None: no answer has ended


class Tenants:
    """Owns what one gateway knows of its tenants. Each name that the YAML does not have gets `default`'s limits.

    A request pays for its prompt when it is admitted, and for each token of its answer as it comes: nobody knows the
    answer's length before, and a limit is no length. So a bucket may be in debt, and then its tenant has to wait until
    that is paid; over any T seconds a tenant gets ``burst_tokens + T * tokens_per_s`` tokens at most, and what its
    admitted requests still generate. A request that is tried again pays nothing.

    Names are those that `known_as` gave.
    """

    def __init__(self, limits: Mapping[str, TenantLimits] = NO_TENANTS) -> None:
        self._limits = limits
        self._default = limits.get(DEFAULT_TENANT, NO_LIMITS)
        self._records: dict[str, _Record] = {}
        self._forgot_at = float("-inf")

    def limits_of(self, tenant: str) -> TenantLimits:
        """A tenant's limits, known or not."""
        return self._limits.get(tenant, self._default)

    def over_rate(self, tenant: str, num_tokens: int, now: float) -> OverRate | None:
        """Whether a tenant has to wait for so many tokens. More than its burst are had when its bucket is full."""
        record = self._record(tenant, now)
        wait_s = 0.0 if record.bucket is None else record.bucket.wait_s(num_tokens, now)
        if not wait_s:
            return None
        return OverRate(tenant, record.limits.tokens_per_s or 0.0, wait_s)

    def admitted(self, tenant: str, num_requests: int, num_prompt_tokens: int, now: float) -> None:
        """Requests of one prompt were let in: the prompt is paid for."""
        record = self._record(tenant, now)
        record.counts.admitted += num_requests
        record.counts.prompt_tokens += num_prompt_tokens
        if record.bucket is not None:
            record.bucket.take(num_prompt_tokens, now)

    def refused(self, tenant: str, num_requests: int, now: float) -> None:
        """Requests were not let in, or were given up while they waited."""
        self._record(tenant, now).counts.refused += num_requests

    def generated(self, tenant: str, num_tokens: int, now: float) -> None:
        """Tokens of an answer came; they are paid for."""
        record = self._record(tenant, now)
        record.counts.output_tokens += num_tokens
        if record.bucket is not None:
            record.bucket.take(num_tokens, now)

    def concluded(self, tenant: str, num_tokens: int, now: float) -> None:
        """An answer of so many tokens is complete."""
        record = self._record(tenant, now)
        mean = record.mean_output_tokens
        record.mean_output_tokens = num_tokens if mean is None else mean + _LENGTH_WEIGHT * (num_tokens - mean)

    def expected_output_tokens(self, tenant: str, max_tokens: int, now: float) -> float:
        """How long an answer will be: as the tenant's were in the mean, or else as it may be."""
        mean = self._record(tenant, now).mean_output_tokens
        return max_tokens if mean is None else min(max_tokens, mean)

    def started(self, tenant: str, now: float) -> None:
        """One of its requests went to workers; `stopped` must follow."""
        self._record(tenant, now).counts.running += 1

    def stopped(self, tenant: str, now: float) -> None:
        """One of its requests left the workers."""
        counts = self._record(tenant, now).counts
        counts.running -= 1
        assert counts.running >= 0, f"{tenant} has stopped more than it started"

    def may_start(self, tenant: str) -> bool:
        """Whether one more of its requests may go to workers."""
        record = self._records.get(tenant)
        most = self.limits_of(tenant).max_running
        return record is None or most is None or record.counts.running < most

    def counts(self) -> Mapping[str, TenantCounts]:
        """By name, in order. Of tenants that were forgotten there is none. Read only."""
        return {name: record.counts for name, record in sorted(self._records.items())}

    def known_as(self, tenant: str, now: float) -> str:
        """The name to use for a request from now on: names are free to invent, and beyond so many, new ones share."""
        most = MAX_TENANTS + len(self._limits)
        if tenant in self._records or tenant in self._limits or len(self._records) < most:
            return tenant
        if not 0 <= now - self._forgot_at < _FORGET_EVERY_S:
            self._forgot_at = now
            self._forget_idle(now)
        return tenant if len(self._records) < most else OTHERS

    def _forget_idle(self, now: float) -> None:
        """Forget tenants that the YAML does not have and that would come back as if they were new."""
        for name, record in list(self._records.items()):
            is_idle = not record.counts.running and (record.bucket is None or record.bucket.is_full(now))
            if is_idle and name not in self._limits:
                del self._records[name]

    def _record(self, tenant: str, now: float) -> _Record:
        record = self._records.get(tenant)
        if record is None:
            limits = self.limits_of(tenant)
            record = self._records[tenant] = _Record(limits, limits.bucket(now))
        return record
