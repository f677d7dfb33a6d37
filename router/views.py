"""What a gateway knows about the workers' load, and the frozen snapshot of it that policies see.

Knows no policy, no transport and no clock: `now` is an argument, in seconds of the gateway's monotonic clock.
"""

from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True, slots=True, eq=False)
class ClusterView:
    """All workers at one moment, as read-only arrays over N workers in order of their ids.

    Loads are the workers' own words plus the gateway's orders that those words cannot include yet.
    """

    worker_ids: tuple[str, ...]
    prefills: NDArray[np.bool_]  # [N] its role includes prefill; a mixed worker has both
    decodes: NDArray[np.bool_]  # [N] its role includes decode
    is_ready: NDArray[np.bool_]  # [N]
    total_blocks: NDArray[np.int64]  # [N]
    block_tokens: NDArray[np.int64]  # [N]
    kinds: tuple[str, ...]  # each once, sorted
    kind: NDArray[np.int64]  # [N] place in kinds
    age_s: NDArray[np.float64]  # [N] since the worker was last heard
    free_blocks: NDArray[np.int64]  # [N]
    running: NDArray[np.int64]  # [N]
    context_tokens: NDArray[np.int64]  # [N]
    waiting_prefills: NDArray[np.int64]  # [N]
    waiting_prefill_tokens: NDArray[np.int64]  # [N]
    reservations: NDArray[np.int64]  # [N]
    reserved_blocks: NDArray[np.int64]  # [N]
    parked_blocks: NDArray[np.int64]  # [N]
    peak_blocks: NDArray[np.int64]  # [N]


Kind = TypeVar("Kind", bound=np.generic)

_COUNTS = (
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


@dataclass(frozen=True, slots=True)
class _Order:
    """Work sent to a worker when its last known load had ``version``."""

    version: int
    prefill_tokens: int
    reserve_blocks: int


@dataclass(slots=True)
class _Row:
    worker: WorkerView
    heard_at: float
    orders: dict[str, _Order] = field(default_factory=dict)  # by request id


class ViewTable:
    """Owns what one gateway knows of its workers; a worker once joined keeps its row, lost or not."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._rebuild()

    def join(self, worker: WorkerView, now: float) -> None:
        """A worker said hello. An earlier incarnation of the same id is forgotten, with all orders sent to it."""
        self._rows[worker.worker_id] = _Row(worker, now)
        self._rebuild()

    def update(self, worker_id: str, load: WorkerLoad, now: float) -> None:
        """Take a worker's word on its load; one that is not newer than the last only counts as a sign of life.

        Own orders are forgotten once the word is newer by two versions: the next version after an order may have been
        made before the order arrived. Words of a lost worker are ignored.
        """
        row = self._rows[worker_id]
        if row.worker.state == WorkerState.LOST:
            return
        row.heard_at = now
        if load.version > row.worker.load.version:
            row.worker = replace(row.worker, load=load)
            row.orders = {key: order for key, order in row.orders.items() if order.version + 1 >= load.version}
        self._refresh(worker_id)

    def drain(self, worker_id: str) -> None:
        """Send the worker nothing new; what it has goes on."""
        self._set_state(worker_id, WorkerState.DRAINING)

    def resume(self, worker_id: str) -> None:
        """A draining worker may be sent requests again."""
        self._set_state(worker_id, WorkerState.READY)

    def set_role(self, worker_id: str, role: Role) -> None:
        """The worker takes other work from now on; what it has goes on."""
        row = self._rows[worker_id]
        row.worker = replace(row.worker, role=role)
        self._rebuild()

    def lost(self, worker_id: str) -> None:
        """The worker is gone, and all its work with it. Idempotent."""
        row = self._rows[worker_id]
        row.orders.clear()
        row.worker = replace(row.worker, load=WorkerLoad())
        self._set_state(worker_id, WorkerState.LOST)

    def add_inflight(
        self, worker_id: str, request_id: str, *, prefill_tokens: int = 0, reserve_blocks: int = 0
    ) -> None:
        """Count an order just sent to a live worker: tokens it is to prefill, blocks it is to keep for decoding.

        A local plan is one order with both. Ignored for a lost worker.
        """
        row = self._rows[worker_id]
        if row.worker.state == WorkerState.LOST:
            return
        row.orders[request_id] = _Order(row.worker.load.version, prefill_tokens, reserve_blocks)
        self._refresh(worker_id)

    def settle(self, worker_id: str, request_id: str) -> None:
        """Stop counting an order: the worker answered it, or it was cancelled. Idempotent."""
        if self._rows[worker_id].orders.pop(request_id, None) is not None:
            self._refresh(worker_id)

    def worker(self, worker_id: str) -> WorkerView:
        """One worker, with its own word on its load and the orders that this cannot include yet."""
        row = self._rows[worker_id]
        counts = dict(zip(_COUNTS, _counted(row), strict=True))
        return replace(row.worker, load=replace(row.worker.load, **counts))

    def workers(self) -> tuple[WorkerView, ...]:
        """Every worker that ever joined, by id, with its own word on its load."""
        return tuple(self._rows[worker_id].worker for worker_id in self._ids)

    def snapshot(self, now: float) -> ClusterView:
        """Freeze what is known, own orders in flight included; later changes of the table do not show in it."""
        counts = self._counts.copy()
        age_s = now - self._heard_at
        counts.flags.writeable = age_s.flags.writeable = False
        return ClusterView(
            self._ids,
            self._prefills,
            self._decodes,
            self._is_ready,
            self._total_blocks,
            self._block_tokens,
            self._kinds,
            self._kind,
            age_s,
            *counts,
        )

    def check(self) -> None:
        """Recompute every array from the rows; AssertionError if one differs."""
        fresh = ViewTable()
        fresh._rows = self._rows
        fresh._rebuild()
        assert fresh._ids == self._ids
        assert np.array_equal(fresh._counts, self._counts)
        assert np.array_equal(fresh._heard_at, self._heard_at)
        assert np.array_equal(fresh._is_ready, self._is_ready)

    def _set_state(self, worker_id: str, state: WorkerState) -> None:
        row = self._rows[worker_id]
        row.worker = replace(row.worker, state=state)
        self._rebuild()

    def _refresh(self, worker_id: str) -> None:
        column, row = self._column[worker_id], self._rows[worker_id]
        self._counts[:, column] = _counted(row)
        self._heard_at[column] = row.heard_at

    def _rebuild(self) -> None:
        """Make all arrays anew. Those that snapshots share are replaced here and never written to."""
        self._ids = tuple(sorted(self._rows))
        self._column = {worker_id: column for column, worker_id in enumerate(self._ids)}
        workers = self.workers()
        self._prefills = _frozen([worker.role != Role.DECODE for worker in workers], np.bool_)
        self._decodes = _frozen([worker.role != Role.PREFILL for worker in workers], np.bool_)
        self._is_ready = _frozen([worker.state == WorkerState.READY for worker in workers], np.bool_)
        self._total_blocks = _frozen([worker.total_blocks for worker in workers], np.int64)
        self._block_tokens = _frozen([worker.block_tokens for worker in workers], np.int64)
        self._kinds = tuple(sorted({worker.kind for worker in workers}))
        self._kind = _frozen([self._kinds.index(worker.kind) for worker in workers], np.int64)
        self._counts = np.zeros((len(_COUNTS), len(workers)), np.int64)
        self._heard_at = np.zeros(len(workers), np.float64)
        for worker_id in self._ids:
            self._refresh(worker_id)


def _counted(row: _Row) -> list[int]:
    """A worker's column of ``_COUNTS``: its own word and the orders it has not spoken of."""
    counts = {name: getattr(row.worker.load, name) for name in _COUNTS}
    for order in row.orders.values():
        counts["waiting_prefills"] += order.prefill_tokens > 0
        counts["waiting_prefill_tokens"] += order.prefill_tokens
        counts["reservations"] += order.reserve_blocks > 0
        counts["reserved_blocks"] += order.reserve_blocks
    return list(counts.values())


def _frozen(values: list[int] | list[bool], kind: type[Kind]) -> NDArray[Kind]:
    array = np.array(values, kind)
    array.flags.writeable = False
    return array
