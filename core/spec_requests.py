"""The sections of the cluster YAML about requests: where they go, by which goals, and how much each tenant may have.

Knows nothing of workers and of how any of it is kept.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from twinpool.core.messages import Goal
from twinpool.core.spec_fields import Problem, Seconds, not_yet, refuse
from twinpool.core.spec_section import Section


class RouterSpec(Section):
    """Where requests go, and how long they may wait."""

    policy: Literal["round_robin", "least_loaded", "prefix_aware", "slo"] = "slo"
    """How workers are chosen."""
    disaggregate: Literal["always", "when_cheaper", "never"] = "when_cheaper"
    """Whether prefill and decode of one request run on two workers."""
    on_prefill_loss: Literal["local", "fail"] = "local"
    """With no prefill worker left: let decode workers prefill, or fail requests."""
    max_queued: int = Field(default=1024, ge=0, le=2**20)
    """Requests that may wait at a gateway; beyond it they are refused early."""
    aging_s: Seconds = 30.0
    """A request that has waited so long rises by one priority, so that none waits for ever."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """How often one request is tried when workers die under it."""
    profile: str | None = Field(default=None, min_length=1, max_length=4096)
    """File of `twinpool profile`, relative to this file: how long the workers' steps and handoffs take."""


class GoalSpec(Section):
    """Upper bounds that a class of requests should meet."""

    ttft_s: Seconds
    """Seconds from arrival to the first token."""
    tpot_s: Seconds
    """Mean seconds between later tokens."""
    priority: Literal["high", "normal", "low"] = "normal"
    """Who goes first when not all can."""
    on_miss: Annotated[Literal["best_effort"], not_yet("hold", "reject")] = "best_effort"
    """What to do when no plan meets the goals: take the one that misses by the least."""
    deadline_s: Seconds | None = None
    """Seconds from arrival by which the first token must come; a request that cannot make it never starts."""

    @property
    def goal(self) -> Goal:
        return Goal(self.ttft_s, self.tpot_s)

    @property
    def priority_rank(self) -> int:
        """The priority as requests carry it: smaller goes first, 0 is normal."""
        return {"high": -1, "normal": 0, "low": 1}[self.priority]


class TenantSpec(Section):
    """What one tenant may have, at each gateway; each limit that is not given is none."""

    tokens_per_s: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    """Tokens per second, of prompts and answers together; requests beyond it are refused."""
    burst_tokens: int | None = Field(default=None, ge=1, le=2**40)
    """Tokens that may come at once after a pause; what comes in ten seconds, unless given."""
    max_running: int | None = Field(default=None, ge=1, le=2**20)
    """Requests that may be on workers at a time; more wait."""
    weight: float = Field(default=1.0, ge=0.001, le=1000)
    """Its share where tenants wait for the same: one of weight 3 gets three times as much as one of weight 1."""
    queue_share: float = Field(default=0.5, gt=0, le=1)
    """The part of router.max_queued that it may fill."""

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Self:
        if self.burst_tokens is not None and self.tokens_per_s is None:
            refuse([Problem(("burst_tokens",), "says nothing without tokens_per_s")])
        return self
