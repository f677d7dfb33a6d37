"""Lends workers between the prefill and the decode pool while one of them is full (Splitwise, ISCA'24, section IV-A).

Knows no request; what cannot be placed asks, by the reason for which it was held.
"""

from dataclasses import dataclass

import numpy as np

from twinpool.core.messages import Role
from twinpool.router.route import HoldReason
from twinpool.router.views import ClusterView, WorkerView


@dataclass(frozen=True, slots=True)
class RoleMove:
    """Let this worker take work of this role from now on."""

    worker_id: str
    role: Role


def choose_move(view: ClusterView, reason: HoldReason | None) -> RoleMove | None:
    """The worker to lend where a request is held for this reason. None: there is none, or it would not help.

    For a full prefill queue, the decode worker with the least to do; for decode blocks, the prefill worker that holds
    the fewest. Ties go to the smaller id.
    """
    match reason:
        case HoldReason.PREFILL_QUEUE:
            lendable, load = view.is_ready & view.decodes & ~view.prefills, view.running + view.reservations
        case HoldReason.DECODE_BLOCKS | HoldReason.NO_DECODE_WORKERS:
            lendable, load = view.is_ready & view.prefills & ~view.decodes, view.total_blocks - view.free_blocks
        case _:
            return None
    candidates = np.flatnonzero(lendable)
    if not len(candidates):
        return None
    return RoleMove(view.worker_ids[candidates[int(np.argmin(load[candidates]))]], Role.MIXED)


def may_return(worker: WorkerView, home: Role) -> bool:
    """Whether a worker that was lent has nothing to do, and so goes home."""
    load = worker.load
    busy = load.running + load.reservations + load.waiting_prefills + load.parked_blocks
    return worker.role is Role.MIXED and home is not Role.MIXED and not busy
