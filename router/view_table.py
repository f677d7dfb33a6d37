"""What one gateway knows of its workers' load, kept current as they speak and as orders are sent to them.

Knows no policy, no transport and no clock: ``now`` is an argument, in seconds of the gateway's monotonic clock.
"""

from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinpool.core.messages import Role
from twinpool.router.views import COUNTS, ClusterView, WorkerLoad, WorkerState, WorkerView, roster_of

_own_counts = attrgetter(*COUNTS)
_WAITING_PREFILLS, _WAITING_PREFILL_TOKENS = COUNTS.index("waiting_prefills"), COUNTS.index("waiting_prefill_tokens")
_RESERVATIONS, _RESERVED_BLOCKS = COUNTS.index("reservations"), COUNTS.index("reserved_blocks")


@dataclass(frozen=True, slots=True)
class _Order:
    """Work sent to a worker when its last known load had ``version``."""

    version: int
    prefill_tokens: int
    reserve_blocks: int


@dataclass(slots=True)
class _Row:
    worker: WorkerView  # its load is in ``load``
    load: WorkerLoad
    heard_at: float
    orders: dict[str, _Order] = field(default_factory=dict)  # by request id

    def view(self) -> WorkerView:
        return replace(self.worker, load=self.load)


class ViewTable:
    """Owns what one gateway knows of its workers; a worker once joined keeps its row, lost or not."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._is_stale = True  # who is there has changed: all arrays are made anew when next asked for
        self._column: dict[str, int] = {}
        self._changed: set[str] = set()  # workers whose columns of the counts are to be made anew
        self._frozen: NDArray[np.int64] | None = None  # the counts that the last snapshot has
        self.version = 0  # grows with every change but signs of life

    def join(self, worker: WorkerView, now: float) -> None:
        """A worker said hello. An earlier incarnation of the same id is forgotten, with all orders sent to it."""
        self._rows[worker.worker_id] = _Row(worker, worker.load, now)
        self._outdate()

    def update(self, worker_id: str, load: WorkerLoad, now: float) -> None:
        """Take a worker's word on its load; one that is not newer than the last only counts as a sign of life.

        Own orders are forgotten once the word is newer by two versions: the next version after an order may have been
        made before the order arrived. Words of a lost worker are ignored.
        """
        row = self._rows[worker_id]
        if row.worker.state == WorkerState.LOST:
            return
        row.heard_at = now
        if not self._is_stale:
            self._heard_at[self._column[worker_id]] = now
        if load.version <= row.load.version:
            return
        row.load = load
        if row.orders:
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
        self._outdate()

    def lost(self, worker_id: str) -> None:
        """The worker is gone, and all its work with it. Idempotent."""
        row = self._rows[worker_id]
        row.orders.clear()
        row.load = WorkerLoad()
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
        row.orders[request_id] = _Order(row.load.version, prefill_tokens, reserve_blocks)
        self._refresh(worker_id)

    def settle(self, worker_id: str, request_id: str) -> None:
        """Stop counting an order: the worker answered it, or it was cancelled. Idempotent."""
        if self._rows[worker_id].orders.pop(request_id, None) is not None:
            self._refresh(worker_id)

    def worker(self, worker_id: str) -> WorkerView:
        """One worker, with its own word on its load and the orders that this cannot include yet."""
        row = self._rows[worker_id]
        counts: dict[str, Any] = dict(zip(COUNTS, _counted(row), strict=True))
        return replace(row.worker, load=replace(row.load, **counts))

    def workers(self) -> tuple[WorkerView, ...]:
        """Every worker that ever joined, by id, with its own word on its load."""
        return tuple(self._rows[worker_id].view() for worker_id in sorted(self._rows))

    def snapshot(self, now: float) -> ClusterView:
        """Freeze what is known, own orders in flight included; later changes of the table do not show in it."""
        if self._is_stale or self._changed or self._frozen is None:
            self._bring_up_to_date()
            self._frozen = self._counts.copy()
            self._frozen.flags.writeable = False
        age_s = now - self._heard_at
        age_s.flags.writeable = False
        return ClusterView(self._roster, age_s, self._frozen)

    def check(self) -> None:
        """Recompute every array from the rows; AssertionError if one differs."""
        fresh = ViewTable()
        fresh._rows = self._rows
        fresh._rebuild()
        if self._is_stale:
            return
        self._bring_up_to_date()
        assert fresh._roster.worker_ids == self._roster.worker_ids
        assert np.array_equal(fresh._roster.is_ready, self._roster.is_ready)
        assert np.array_equal(fresh._counts, self._counts)
        assert np.array_equal(fresh._heard_at, self._heard_at)

    def _set_state(self, worker_id: str, state: WorkerState) -> None:
        row = self._rows[worker_id]
        row.worker = replace(row.worker, state=state)
        self._outdate()

    def _outdate(self) -> None:
        self._is_stale = True
        self.version += 1

    def _refresh(self, worker_id: str) -> None:
        self._changed.add(worker_id)
        self.version += 1

    def _bring_up_to_date(self) -> None:
        """Make what has changed since the last snapshot anew: many changes come between two of them."""
        if self._is_stale:
            self._rebuild()
        for worker_id in self._changed:
            self._counts[:, self._column[worker_id]] = _counted(self._rows[worker_id])
        self._changed.clear()

    def _rebuild(self) -> None:
        """Make all arrays anew. Those that snapshots share are replaced here and never written to."""
        rows = [self._rows[worker_id] for worker_id in sorted(self._rows)]
        self._roster = roster_of([row.worker for row in rows])
        self._column = {worker_id: column for column, worker_id in enumerate(self._roster.worker_ids)}
        self._counts = np.array([_counted(row) for row in rows], np.int64).reshape(len(rows), len(COUNTS)).T.copy()
        self._heard_at = np.array([row.heard_at for row in rows], np.float64)
        self._is_stale = False
        self._changed.clear()


def _counted(row: _Row) -> list[int]:
    """A worker's column of ``COUNTS``: its own word and the orders it has not spoken of."""
    counts = list(_own_counts(row.load))
    for order in row.orders.values():
        counts[_WAITING_PREFILLS] += order.prefill_tokens > 0
        counts[_WAITING_PREFILL_TOKENS] += order.prefill_tokens
        counts[_RESERVATIONS] += order.reserve_blocks > 0
        counts[_RESERVED_BLOCKS] += order.reserve_blocks
    return counts
