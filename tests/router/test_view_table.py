"""The view table against a plain recomputation, and what its snapshots promise."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.core.messages import Role
from twinpool.router.view_table import ViewTable
from twinpool.router.views import WorkerLoad, WorkerState, WorkerView


def worker(
    worker_id: str, role: Role = Role.DECODE, incarnation: str = "a", load: WorkerLoad | None = None
) -> WorkerView:
    return WorkerView(worker_id, incarnation, role, total_blocks=100, block_tokens=16, load=load or WorkerLoad())


def table_of(*worker_ids: str) -> ViewTable:
    table = ViewTable()
    for worker_id in worker_ids:
        table.join(worker(worker_id), now=0.0)
    return table


def test_workers_are_in_order_of_their_ids() -> None:
    view = table_of("b", "c", "a").snapshot(1.0)
    assert view.worker_ids == ("a", "b", "c")


def test_an_empty_table_has_an_empty_view() -> None:
    view = ViewTable().snapshot(0.0)
    assert view.worker_ids == ()
    assert view.running.shape == (0,)


def test_a_mixed_worker_prefills_and_decodes() -> None:
    table = ViewTable()
    for worker_id, role in (("d", Role.DECODE), ("m", Role.MIXED), ("p", Role.PREFILL)):
        table.join(worker(worker_id, role), now=0.0)
    view = table.snapshot(0.0)
    assert view.prefills.tolist() == [False, True, True]
    assert view.decodes.tolist() == [True, True, False]


def test_kinds_are_told_once_and_by_their_place() -> None:
    table = ViewTable()
    for worker_id, kind in (("a", "slow"), ("b", ""), ("c", "fast"), ("d", "slow")):
        table.join(replace(worker(worker_id), kind=kind), now=0.0)
    view = table.snapshot(0.0)
    assert view.kinds == ("", "fast", "slow")
    assert [view.kinds[index] for index in view.kind] == ["slow", "", "fast", "slow"]


def test_age_counts_from_the_last_word() -> None:
    table = table_of("a", "b")
    table.update("a", WorkerLoad(version=1), now=3.0)
    assert table.snapshot(5.0).age_s.tolist() == [2.0, 5.0]


def test_a_word_that_is_not_newer_changes_only_the_age() -> None:
    table = table_of("a")
    table.update("a", WorkerLoad(version=2, running=5), now=1.0)
    table.update("a", WorkerLoad(version=2, running=9), now=2.0)
    view = table.snapshot(2.0)
    assert view.running.tolist() == [5]
    assert view.age_s.tolist() == [0.0]


def test_own_orders_count_until_a_word_newer_by_two() -> None:
    table = table_of("a")
    table.add_inflight("a", "r", prefill_tokens=40, reserve_blocks=3)
    seen = []
    for version in (1, 2):
        view = table.snapshot(0.0)
        seen.append([int(x[0]) for x in (view.waiting_prefills, view.waiting_prefill_tokens, view.reservations)])
        table.update("a", WorkerLoad(version=version), now=0.0)
    assert seen == [[1, 40, 1], [1, 40, 1]]
    assert table.snapshot(0.0).waiting_prefill_tokens.tolist() == [0]
    assert table.snapshot(0.0).reserved_blocks.tolist() == [0]


def test_a_settled_order_counts_no_more() -> None:
    table = table_of("a")
    table.add_inflight("a", "r", reserve_blocks=3)
    table.add_inflight("a", "s", reserve_blocks=4)
    table.settle("a", "r")
    table.settle("a", "r")
    assert table.snapshot(0.0).reserved_blocks.tolist() == [4]


def test_a_lost_worker_keeps_its_row_and_nothing_else() -> None:
    table = table_of("a", "b")
    table.update("a", WorkerLoad(version=9, running=5), now=1.0)
    table.add_inflight("a", "r", reserve_blocks=3)
    table.lost("a")
    table.lost("a")
    table.add_inflight("a", "late", reserve_blocks=3)
    table.update("a", WorkerLoad(version=10, running=6), now=2.0)
    view = table.snapshot(2.0)
    assert view.is_ready.tolist() == [False, True]
    assert (view.running[0], view.reserved_blocks[0], view.total_blocks[0]) == (0, 0, 100)
    assert table.workers()[0].state == WorkerState.LOST


def test_a_new_incarnation_begins_anew_with_its_own_versions() -> None:
    table = table_of("a")
    table.update("a", WorkerLoad(version=9, running=5), now=1.0)
    table.lost("a")
    table.join(worker("a", incarnation="b"), now=2.0)
    table.update("a", WorkerLoad(version=1, running=2), now=3.0)
    view = table.snapshot(3.0)
    assert (bool(view.is_ready[0]), int(view.running[0])) == (True, 2)


def test_a_draining_worker_is_not_ready_and_still_heard() -> None:
    table = table_of("a")
    table.drain("a")
    table.update("a", WorkerLoad(version=1, running=2), now=1.0)
    view = table.snapshot(1.0)
    assert (bool(view.is_ready[0]), int(view.running[0])) == (False, 2)


def test_a_snapshot_is_frozen() -> None:
    table = table_of("a")
    view = table.snapshot(0.0)
    table.update("a", WorkerLoad(version=1, running=7), now=1.0)
    table.drain("a")
    assert (view.running.tolist(), view.is_ready.tolist()) == ([0], [True])
    for array in (view.running, view.age_s, view.is_ready, view.total_blocks):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("jualds"), st.sampled_from("abc"), st.integers(0, 4)), max_size=30))
def test_arrays_equal_a_recomputation_after_any_history(events: list[tuple[str, str, int]]) -> None:
    table = table_of("a", "b", "c")
    for now, (event, worker_id, number) in enumerate(events):
        match event:
            case "j":
                table.join(worker(worker_id), float(now))
            case "u":
                table.update(worker_id, WorkerLoad(version=now, running=number, reserved_blocks=number), float(now))
            case "a":
                table.add_inflight(worker_id, f"r{number}", prefill_tokens=number, reserve_blocks=number)
            case "s":
                table.settle(worker_id, f"r{number}")
            case "l":
                table.lost(worker_id)
            case _:
                table.drain(worker_id)
        table.check()


def test_a_snapshot_stays_as_it_was_and_one_of_an_unchanged_table_shares_its_counts() -> None:
    table = ViewTable()
    table.join(worker("a"), now=0.0)
    first = table.snapshot(now=1.0)
    assert table.snapshot(now=2.0).counts is first.counts
    table.add_inflight("a", "r", reserve_blocks=7)
    assert table.snapshot(now=2.0).reserved_blocks.tolist() == [7]
    assert first.reserved_blocks.tolist() == [0]


def test_the_version_grows_with_every_change_but_signs_of_life() -> None:
    table = ViewTable()
    versions = [table.version]
    for change in (
        lambda: table.join(worker("a"), now=0.0),
        lambda: table.update("a", WorkerLoad(version=1), now=1.0),
        lambda: table.add_inflight("a", "r", prefill_tokens=5),
        lambda: table.settle("a", "r"),
        lambda: table.set_role("a", Role.MIXED),
        lambda: table.drain("a"),
        lambda: table.lost("a"),
    ):
        change()
        versions.append(table.version)
    assert versions == sorted(set(versions))
    table.join(worker("a"), now=2.0)
    before = table.version
    table.update("a", WorkerLoad(version=0), now=3.0)
    table.settle("a", "unknown")
    assert table.version == before
