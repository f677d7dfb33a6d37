"""The sections of the cluster YAML about workers: how many of each role, and of what kind.

Knows nothing of the rest of the file, nor of a machine.
"""

from typing import Self

from pydantic import Field, model_validator

from twinpool.core.messages import Role
from twinpool.core.spec_fields import Cores, Hardware, OneForNow, Problem, Threads, parse_cores, refuse
from twinpool.core.spec_section import Section

MAX_WORKERS = 1024


class PoolSpec(Section):
    """The workers of one role."""

    workers: int = Field(ge=0, le=MAX_WORKERS)
    """How many."""
    tensor_parallel: OneForNow = 1
    """Ranks that share each layer of one worker."""
    pipeline_parallel: OneForNow = 1
    """Ranks that share the layers of one worker."""
    hardware: Hardware | None = None
    """What GPU each rank has: the router's first estimate and the simulator suppose it; nobody checks it."""
    threads: Threads = "auto"
    """CPU threads each worker computes with; auto is its cores, or its share of the machine's."""
    cores: Cores = ""
    """CPU cores of the pool, such as 0-3,8: each worker is pinned to an equal slice of them, in this order."""

    @model_validator(mode="after")
    def _has_cores(self) -> Self:
        num_cores = len(parse_cores(self.cores))
        if num_cores and self.workers and num_cores % self.workers:
            what = f"{num_cores} cores cannot be shared out equally among {self.workers} workers"
            refuse([Problem(("cores",), what)])
        each = num_cores // self.workers if self.workers else 0
        if each and isinstance(self.threads, int) and self.threads > each:
            refuse([Problem(("threads",), f"{self.threads} are over the {each} cores that each worker is pinned to")])
        return self

    def cores_of(self, index: int) -> tuple[int, ...]:
        """The cores of one of the pool's workers; none when nothing was said."""
        cores = parse_cores(self.cores)
        size = len(cores) // self.workers
        return cores[index * size : (index + 1) * size]


class PoolsSpec(Section):
    """Workers by role. Requests need workers that prefill and workers that decode; mixed ones do both."""

    prefill: PoolSpec = PoolSpec(workers=0)
    decode: PoolSpec = PoolSpec(workers=0)
    mixed: PoolSpec = PoolSpec(workers=0)

    def by_role(self) -> dict[Role, PoolSpec]:
        """Every pool, empty ones too."""
        return {Role.PREFILL: self.prefill, Role.DECODE: self.decode, Role.MIXED: self.mixed}

    @model_validator(mode="after")
    def _can_serve(self) -> Self:
        if not self.mixed.workers and not (self.prefill.workers and self.decode.workers):
            what = "cannot serve: need at least one prefill and one decode worker, or one mixed worker"
            refuse([Problem((), what)])
        return self
