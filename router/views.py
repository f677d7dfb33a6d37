"""What policies see of the workers: who they are, what they say of their load, and a frozen snapshot of all of it.

Values only; view_table.py keeps them current.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from twinpool.core.messages import Role


class WorkerState(StrEnum):
    """Whether a worker takes new requests: only a ready one does."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # finishes what it has
    LOST = "lost"  # expected back under a new incarnation


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's own word on its load; the fields of `WorkerView` in worker.proto. ``version`` only grows."""

    version: int = 0
    free_blocks: int = 0
    running: int = 0
    context_tokens: int = 0
    waiting_prefills: int = 0
    waiting_prefill_tokens: int = 0
    reservations: int = 0
    reserved_blocks: int = 0
    parked_blocks: int = 0
    peak_blocks: int = 0
    cause: str = ""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker: who it is, what it has, and what it last said about its load."""

    worker_id: str
    incarnation: str
    role: Role
    total_blocks: int
    block_tokens: int
    state: WorkerState = WorkerState.READY
    load: WorkerLoad = WorkerLoad()
    kind: str = ""  # what it is predicted by: a name in PlacementSettings.latencies, or any other


Kind = TypeVar("Kind", bound=np.generic)

COUNTS = (
    "free_blocks",
    "running",
    "context_tokens",
    "waiting_prefills",
    "waiting_prefill_tokens",
    "reservations",
    "reserved_blocks",
    "parked_blocks",
    "peak_blocks",
)


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """Who the N workers are, in order of their ids, as read-only arrays [N]: what seldom changes, and views share."""

    worker_ids: tuple[str, ...]
    prefills: NDArray[np.bool_]  # its role includes prefill; a mixed worker has both
    decodes: NDArray[np.bool_]  # its role includes decode
    is_ready: NDArray[np.bool_]
    total_blocks: NDArray[np.int64]
    block_tokens: NDArray[np.int64]
    kinds: tuple[str, ...]  # each once, sorted
    kind: NDArray[np.int64]  # place in kinds
    can_prefill: NDArray[np.bool_]  # ready ones
    can_decode: NDArray[np.bool_]
    least_tokens: int  # that a worker's KV holds
    most_tokens: int
    most_decode_tokens: int  # of those that decode, ready or not; -1 when there is none
    same_block_tokens: int  # of all workers; 0 where they differ


@dataclass(frozen=True, slots=True, eq=False)
class ClusterView:
    """All workers at one moment, as read-only arrays over N workers in order of their ids.

    Loads are the workers' own words plus the gateway's orders that those words cannot include yet.
    """

    roster: Roster
    age_s: NDArray[np.float64]  # [N] since the worker was last heard
    counts: NDArray[np.int64]  # [9, N]; by name below

    @property
    def worker_ids(self) -> tuple[str, ...]:
        return self.roster.worker_ids

    @property
    def prefills(self) -> NDArray[np.bool_]:
        return self.roster.prefills

    @property
    def decodes(self) -> NDArray[np.bool_]:
        return self.roster.decodes

    @property
    def is_ready(self) -> NDArray[np.bool_]:
        return self.roster.is_ready

    @property
    def total_blocks(self) -> NDArray[np.int64]:
        return self.roster.total_blocks

    @property
    def block_tokens(self) -> NDArray[np.int64]:
        return self.roster.block_tokens

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.roster.kinds

    @property
    def kind(self) -> NDArray[np.int64]:
        return self.roster.kind

    @property
    def free_blocks(self) -> NDArray[np.int64]:
        return self._count(0)

    @property
    def running(self) -> NDArray[np.int64]:
        return self._count(1)

    @property
    def context_tokens(self) -> NDArray[np.int64]:
        return self._count(2)

    @property
    def waiting_prefills(self) -> NDArray[np.int64]:
        return self._count(3)

    @property
    def waiting_prefill_tokens(self) -> NDArray[np.int64]:
        return self._count(4)

    @property
    def reservations(self) -> NDArray[np.int64]:
        return self._count(5)

    @property
    def reserved_blocks(self) -> NDArray[np.int64]:
        return self._count(6)

    @property
    def parked_blocks(self) -> NDArray[np.int64]:
        return self._count(7)

    @property
    def peak_blocks(self) -> NDArray[np.int64]:
        return self._count(8)

    def _count(self, row: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self.counts[row]
        return counts


def roster_of(workers: Sequence[WorkerView]) -> Roster:
    """The roster of these workers, which are in order of their ids."""
    prefills = _frozen([worker.role != Role.DECODE for worker in workers], np.bool_)
    decodes = _frozen([worker.role != Role.PREFILL for worker in workers], np.bool_)
    is_ready = _frozen([worker.state == WorkerState.READY for worker in workers], np.bool_)
    kinds = tuple(sorted({worker.kind for worker in workers}))
    tokens = [worker.total_blocks * worker.block_tokens for worker in workers]
    sizes = {worker.block_tokens for worker in workers}
    return Roster(
        worker_ids=tuple(worker.worker_id for worker in workers),
        prefills=prefills,
        decodes=decodes,
        is_ready=is_ready,
        total_blocks=_frozen([worker.total_blocks for worker in workers], np.int64),
        block_tokens=_frozen([worker.block_tokens for worker in workers], np.int64),
        kinds=kinds,
        kind=_frozen([kinds.index(worker.kind) for worker in workers], np.int64),
        can_prefill=prefills & is_ready,
        can_decode=decodes & is_ready,
        least_tokens=min(tokens, default=0),
        most_tokens=max(tokens, default=0),
        most_decode_tokens=max(
            (size for size, decodes_too in zip(tokens, decodes, strict=True) if decodes_too), default=-1
        ),
        same_block_tokens=sizes.pop() if len(sizes) == 1 else 0,
    )


def _frozen(values: list[int] | list[bool], kind: type[Kind]) -> NDArray[Kind]:
    array = np.array(values, kind)
    array.flags.writeable = False
    return array
