"""Decode batching: the forecast against step-by-step simulation, and what a decision may never do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinpool.decode_worker.batching import Column, DecodeView, decide, forecast_peak_blocks, reserve_blocks
from twinpool.model.step import Wait

BLOCK = 4
Pairs = list[tuple[int, int]]
sequences = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), max_size=8)


@dataclass(frozen=True)
class KnownLengths:
    """Predicts for the sequence of turn t the t-th of these lengths."""

    lengths: NDArray[np.int64]
    error_tokens: float = 0.0

    def predict(
        self, written: NDArray[np.int64], limits: NDArray[np.int64], turns: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        return self.lengths[turns]


def make_view(
    running: Pairs,
    wanted: Pairs,
    *,
    expected_tokens: Any = None,
    wanted_expected: Any = None,
    remaining_tokens: Any = None,
    wanted_remaining: Any = None,
    held_blocks: Any = None,
    is_ready: Any = None,
    error_tokens: float = 0.0,
    **changes: object,
) -> DecodeView:
    """Pairs of (tokens held, tokens still to hold), which is also what is expected unless told otherwise."""
    rows, joining = columns_of(running), columns_of(wanted, first_turn=len(running))
    context = rows[Column.CONTEXT].copy()
    to_go = [np.array([remaining for _, remaining in pairs], dtype=np.int64) for pairs in (running, wanted)]
    given_lengths = zip(to_go, (expected_tokens, wanted_expected), strict=True)
    expected = [own if given is None else np.asarray(given) for own, given in given_lengths]
    rows[Column.LIMIT] = (to_go[0] if remaining_tokens is None else remaining_tokens) + 1
    joining[Column.LIMIT] = (to_go[1] if wanted_remaining is None else wanted_remaining) + 1
    rows[Column.HELD] = -(-context // BLOCK) if held_blocks is None else held_blocks
    rows[Column.IS_READY] = True if is_ready is None else is_ready
    values: dict[str, object] = {
        "rows": rows,
        "wanted": joining[: Column.HELD],
        "lengths": KnownLengths(np.concatenate(expected) + 1, error_tokens),
        "block_tokens": BLOCK,
        "total_blocks": 100,
        "free_blocks": 100 - int((-(-context // BLOCK)).sum()),
        "busy_blocks": 0,
        "parked_blocks": 0,
        "max_running": 64,
    }
    return DecodeView(**(values | changes))  # type: ignore[arg-type]


def columns_of(pairs: Pairs, first_turn: int = 0) -> NDArray[np.int64]:
    """As if each was all prompt: then its limit is one more than what it may still hold."""
    columns = np.zeros((len(Column), len(pairs)), np.int64)
    columns[Column.CONTEXT] = columns[Column.PROMPT] = [tokens for tokens, _ in pairs]
    columns[Column.LIMIT] = [remaining + 1 for _, remaining in pairs]
    columns[Column.TURN] = np.arange(first_turn, first_turn + len(pairs))
    return columns


def peak_by_simulation(ready: Pairs, later: list[tuple[int, int, int]]) -> int:
    """Step all ready sequences together; (tokens, remaining, delay) join them ``delay`` steps from now."""
    peak, step, alive = 0, 0, [(tokens, remaining, 0) for tokens, remaining in ready] + later
    while alive:
        peak = max(peak, sum(-(-tokens // BLOCK) for tokens, _, _ in alive))
        alive = [
            (tokens, remaining, start) if start > step else (tokens + 1, remaining - 1, start)
            for tokens, remaining, start in alive
            if remaining > 0 or start > step
        ]
        step += 1
    return peak


@given(sequences, st.integers(1, 9))
def test_forecast_of_ready_rows_equals_simulation_of_what_is_expected(running: Pairs, surplus: int) -> None:
    """Limits, here above what is expected, do not count."""
    limits = np.array([expected + surplus for _, expected in running], dtype=np.int64)
    view = make_view(running, [], remaining_tokens=limits)
    assert forecast_peak_blocks(view) == peak_by_simulation(running, [])


@given(sequences, st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(0, 40)), max_size=5))
def test_forecast_holds_whenever_rows_become_ready(ready: Pairs, later: list[tuple[int, int, int]]) -> None:
    rows = ready + [(tokens, remaining) for tokens, remaining, _ in later]
    is_ready = np.arange(len(rows)) < len(ready)
    assert peak_by_simulation(ready, later) <= forecast_peak_blocks(make_view(rows, [], is_ready=is_ready))


@given(sequences, sequences, st.integers(0, 30), st.integers(10, 100), st.integers(0, 40))
def test_grants_never_lead_to_more_blocks_than_there_are(
    running: Pairs, wanted: Pairs, busy: int, total: int, delay: int
) -> None:
    plan = decide(make_view(running, wanted, busy_blocks=busy, total_blocks=total), 0.0)
    assert plan.grants == tuple(range(len(plan.grants)))
    if plan.grants:
        joining = [(tokens, remaining, delay) for tokens, remaining in wanted[: len(plan.grants)]]
        assert peak_by_simulation(running, joining) + busy <= total


@given(sequences, st.integers(0, 8), st.integers(0, 4), st.integers(0, 4), st.data())
def test_steps_never_take_more_than_is_free_and_only_the_young_give_way(
    running: Pairs, free: int, busy: int, parked: int, data: st.DataObject
) -> None:
    is_ready = np.array([data.draw(st.booleans()) for _ in running], dtype=np.bool_)
    view = make_view(running, [(4, 4)], free_blocks=free, busy_blocks=busy, parked_blocks=parked, is_ready=is_ready)
    plan = decide(view, 0.0)
    ready = [row for row in range(len(running)) if is_ready[row]]
    wants = [tokens % BLOCK == 0 for tokens, _ in running]
    assert sum(wants[row] for row in plan.decode_rows) <= free
    assert list(plan.decode_rows) == sorted(set(plan.decode_rows) & set(ready))
    staying = [row for row in ready if row not in plan.preempt]
    assert [*staying, *reversed(plan.preempt)] == ready  # the youngest leave
    assert not ready or ready[0] in staying
    sitting = [row for row in staying if row not in plan.decode_rows]
    assert all(wants[row] for row in sitting)
    assert all(row < min(sitting, default=99) for row in plan.decode_rows if wants[row])
    if sitting:
        assert plan.grants == ()
        assert plan.wait in (Wait.DECODE_BLOCKS, Wait.DECODE_PREEMPTED)
        assert plan.demote_blocks == len(sitting)
    assert (plan.wait is Wait.DECODE_PREEMPTED) == bool(plan.preempt)


@given(sequences, st.integers(0, 8), st.integers(0, 4))
def test_no_row_gives_way_that_an_older_one_did_not_need(running: Pairs, free: int, coming: int) -> None:
    """One fewer would have left an older row than the youngest staying one without a block; as many do not."""
    plan = decide(make_view(running, [], free_blocks=free, parked_blocks=coming), 0.0)
    wants = [tokens % BLOCK == 0 for tokens, _ in running]
    held = [-(-tokens // BLOCK) for tokens, _ in running]

    def holds_up_an_older_one(num_staying: int) -> bool:
        return sum(wants[: num_staying - 1]) > free + coming + sum(held[num_staying:])

    num_staying = len(running) - len(plan.preempt)
    assert not running or not holds_up_an_older_one(num_staying)
    assert not plan.preempt or holds_up_an_older_one(num_staying + 1)


def test_an_older_row_takes_the_blocks_of_the_youngest() -> None:
    plan = decide(make_view([(4, 4), (5, 4), (8, 4), (6, 4)], [(4, 4)], free_blocks=0), 0.0)
    assert plan.preempt == (3,)
    assert plan.decode_rows == (1,)  # the others go on in the next step, with what is free then
    assert plan.grants == ()
    assert plan.wait is Wait.DECODE_PREEMPTED


def test_the_youngest_row_sits_out_rather_than_lose_what_nobody_older_needs() -> None:
    plan = decide(make_view([(5, 4), (8, 4)], [], free_blocks=0), 0.0)
    assert plan.preempt == ()
    assert plan.decode_rows == (0,)
    assert plan.wait is Wait.DECODE_BLOCKS


@pytest.mark.parametrize("coming", [{"busy_blocks": 1}, {"parked_blocks": 1}])
def test_nobody_gives_way_while_enough_blocks_come_back(coming: dict[str, int]) -> None:
    plan = decide(make_view([(4, 4), (8, 4), (6, 4)], [], free_blocks=0, **coming), 0.0)
    assert plan.preempt == (2,)  # two are missing, one comes
    plan = decide(make_view([(4, 4), (5, 4), (6, 4)], [], free_blocks=0, **coming), 0.0)
    assert plan.preempt == ()
    assert plan.decode_rows == (1, 2)


def test_rows_not_ready_never_give_way() -> None:
    view = make_view([(4, 4), (40, 4)], [], free_blocks=0, is_ready=np.array([True, False]))
    assert decide(view, 0.0).preempt == ()


@given(sequences, sequences, st.floats(0, 50), st.integers(10, 60))
def test_grants_leave_the_reserve_free(running: Pairs, wanted: Pairs, error: float, total: int) -> None:
    def limits(pairs: Pairs) -> np.ndarray:
        return np.array([expected + 20 for _, expected in pairs], dtype=np.int64)

    changes = {"error_tokens": error, "total_blocks": total, "free_blocks": 100}
    view = make_view(running, wanted, remaining_tokens=limits(running), wanted_remaining=limits(wanted), **changes)
    plan = decide(view, 0.0)
    if plan.grants:
        granted = wanted[: len(plan.grants)]
        rows, is_ready = running + granted, np.arange(len(running) + len(granted)) < len(running)
        joined = make_view(rows, [], remaining_tokens=limits(rows), is_ready=is_ready, **changes)
        assert forecast_peak_blocks(joined) + reserve_blocks(joined) <= total


@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 30), st.floats(0, 100))
def test_a_sequence_that_fits_at_its_limit_is_let_in_when_alone(
    tokens: int, expected: int, surplus: int, error: float
) -> None:
    total = -(-(tokens + expected + surplus) // BLOCK)
    limit = np.array([expected + surplus], dtype=np.int64)
    view = make_view([], [(tokens, expected)], wanted_remaining=limit, error_tokens=error, total_blocks=total)
    assert decide(view, 0.0).grants == (0,)


@given(sequences)
def test_limits_need_no_reserve(running: Pairs) -> None:
    assert reserve_blocks(make_view(running, [], error_tokens=1000.0)) == 0


def test_a_handoff_that_does_not_fit_holds_back_younger_ones_that_would() -> None:
    plan = decide(make_view([(8, 8)], [(400, 8), (4, 4)]), 0.0)
    assert plan.grants == ()
    assert plan.wait is Wait.GRANT_BLOCKS


def test_grants_ask_for_parked_blocks_that_stand_in_the_way() -> None:
    plan = decide(make_view([], [(20, 4)], total_blocks=10, free_blocks=2), 0.0)
    assert plan.grants == (0,)
    assert plan.demote_blocks == 3


def test_a_full_batch_grants_nothing() -> None:
    plan = decide(make_view([(4, 4)], [(4, 4)], max_running=1), 0.0)
    assert plan.grants == ()
    assert plan.wait is Wait.GRANT_SEQUENCES


def test_rows_whose_kv_is_not_there_yet_do_not_decode() -> None:
    plan = decide(make_view([(4, 4), (5, 4)], [], is_ready=np.array([False, True])), 0.0)
    assert plan.decode_rows == (1,)


@given(sequences, st.integers(0, 60))
def test_the_decision_repeats_until_a_sequence_ends_or_blocks_run_out(running: Pairs, free: int) -> None:
    running = [(tokens, remaining) for tokens, remaining in running if remaining > 0]
    held = -(-np.array([tokens for tokens, _ in running], dtype=np.int64) // BLOCK)
    plan = decide(make_view(running, [], free_blocks=free), 0.0)
    for _ in range(plan.repeat - 1):
        running = [(tokens + 1, remaining - 1) for tokens, remaining in running]
        now_held = -(-np.array([tokens for tokens, _ in running], dtype=np.int64) // BLOCK)
        left = free - int((now_held - held).sum())
        assert left >= 0
        assert decide(make_view(running, [], free_blocks=left), 0.0).decode_rows == plan.decode_rows
    if plan.wait is Wait.NOTHING and running and len(plan.decode_rows) == len(running):
        has_ended = min(remaining for _, remaining in running) == 1
        taken = -(-np.array([tokens + 2 for tokens, _ in running], dtype=np.int64) // BLOCK) - held
        assert has_ended or int(taken.sum()) > free


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 40))
def test_steps_end_just_before_the_free_blocks_do_whatever_room_the_rows_have(rows: Pairs, free: int) -> None:
    """Rows hold up to three blocks more than they need now."""
    running = [(tokens, 200) for tokens, _ in rows]
    held = np.array([-(-tokens // BLOCK) + more for tokens, more in rows], dtype=np.int64)
    plan = decide(make_view(running, [], held_blocks=held, free_blocks=free, total_blocks=10_000), 0.0)

    def missing(steps: int) -> int:
        needed = np.array([-(-(tokens + steps) // BLOCK) for tokens, _ in rows], dtype=np.int64)
        return int(np.maximum(0, needed - held).sum())

    if plan.wait is Wait.NOTHING and len(plan.decode_rows) == len(rows) and free >= len(rows):
        assert missing(plan.repeat) <= free
        assert plan.repeat == 200 or missing(plan.repeat + 1) > free
