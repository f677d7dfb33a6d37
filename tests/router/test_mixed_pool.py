"""Lending workers between the pools."""

import numpy as np
import pytest

from twinpool.core.messages import Role
from twinpool.router.mixed_pool import RoleMove, choose_move, may_return
from twinpool.router.route import HoldReason
from twinpool.router.view_table import ViewTable
from twinpool.router.views import ClusterView, WorkerLoad, WorkerView


def member(worker_id: str, role: Role, **load: int) -> WorkerView:
    return WorkerView(worker_id, "1", role, 100, 16, load=WorkerLoad(1, **({"free_blocks": 100} | load)))


def view(*workers: WorkerView, lost: str = "", draining: str = "") -> ClusterView:
    table = ViewTable()
    for worker in workers:
        table.join(worker, 0.0)
    if lost:
        table.lost(lost)
    if draining:
        table.drain(draining)
    return table.snapshot(0.0)


PREFILL, DECODE, MIXED = Role.PREFILL, Role.DECODE, Role.MIXED
FULL_POOLS = (
    member("d0", DECODE, running=3),
    member("d1", DECODE, running=1, reservations=1),
    member("m0", MIXED),
    member("p0", PREFILL, free_blocks=40),
    member("p1", PREFILL, free_blocks=60),
)


def test_a_full_prefill_queue_borrows_the_decode_worker_with_the_least_to_do():
    assert choose_move(view(*FULL_POOLS), HoldReason.PREFILL_QUEUE) == RoleMove("d1", MIXED)


@pytest.mark.parametrize("reason", [HoldReason.DECODE_BLOCKS, HoldReason.NO_DECODE_WORKERS])
def test_full_decode_workers_borrow_the_prefill_worker_that_holds_the_fewest_blocks(reason: HoldReason):
    assert choose_move(view(*FULL_POOLS), reason) == RoleMove("p1", MIXED)


def test_blocks_held_count_not_blocks_free():
    large = WorkerView("p0", "1", PREFILL, 200, 16, load=WorkerLoad(1, free_blocks=150))  # holds 50
    small = member("p1", PREFILL, free_blocks=80)  # holds 20
    assert choose_move(view(large, small), HoldReason.DECODE_BLOCKS) == RoleMove("p1", MIXED)


def test_ties_go_to_the_smaller_id():
    assert choose_move(view(member("d1", DECODE), member("d0", DECODE)), HoldReason.PREFILL_QUEUE) == RoleMove(
        "d0", MIXED
    )


def test_only_ready_workers_of_the_other_role_are_lent():
    workers = (member("d0", DECODE), member("d1", DECODE), member("m0", MIXED))
    assert choose_move(view(*workers, lost="d0"), HoldReason.PREFILL_QUEUE) == RoleMove("d1", MIXED)
    assert choose_move(view(*workers, draining="d0"), HoldReason.PREFILL_QUEUE) == RoleMove("d1", MIXED)
    assert choose_move(view(*workers), HoldReason.DECODE_BLOCKS) is None
    assert choose_move(view(member("m0", MIXED)), HoldReason.PREFILL_QUEUE) is None


@pytest.mark.parametrize("reason", [None, HoldReason.NO_WORKERS])
def test_what_waits_for_another_reason_borrows_nobody(reason: HoldReason | None):
    assert choose_move(view(*FULL_POOLS), reason) is None


def test_orders_under_way_count():
    table = ViewTable()
    for worker_id in ("d0", "d1"):
        table.join(member(worker_id, DECODE), 0.0)
    table.add_inflight("d0", "r", reserve_blocks=5)
    assert choose_move(table.snapshot(0.0), HoldReason.PREFILL_QUEUE) == RoleMove("d1", MIXED)


@pytest.mark.parametrize("busy", ["running", "reservations", "waiting_prefills", "parked_blocks"])
def test_a_lent_worker_goes_home_when_it_has_nothing_to_do(busy: str):
    assert may_return(member("p0", MIXED), PREFILL)
    assert not may_return(member("p0", MIXED, **{busy: 1}), PREFILL)


def test_one_that_is_at_home_stays():
    assert not may_return(member("p0", PREFILL), PREFILL)
    assert not may_return(member("m0", MIXED), MIXED)


def test_lending_ends_when_everybody_is_lent():
    """As each move makes a worker mixed, asking again and again comes to an end."""
    table = ViewTable()
    for number in range(3):
        table.join(member(f"d{number}", DECODE), 0.0)
    moved = []
    while (move := choose_move(table.snapshot(0.0), HoldReason.PREFILL_QUEUE)) is not None:
        table.set_role(move.worker_id, move.role)
        moved.append(move.worker_id)
    assert moved == ["d0", "d1", "d2"]
    assert np.all(table.snapshot(0.0).prefills)
