"""Decode batching: the forecast against step-by-step simulation, and what a decision may never do."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twinpool.decode_worker.batching import DecodeView, decide, forecast_peak_blocks
from twinpool.model.step import Wait

BLOCK = 4
Pairs = list[tuple[int, int]]
sequences = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), max_size=8)


def make_view(running: Pairs, wanted: Pairs, **changes: object) -> DecodeView:
    context = np.array([tokens for tokens, _ in running], dtype=np.int64)
    values: dict[str, object] = {
        "context_tokens": context,
        "remaining_tokens": np.array([remaining for _, remaining in running], dtype=np.int64),
        "held_blocks": -(-context // BLOCK),
        "is_ready": np.ones(len(running), dtype=np.bool_),
        "wanted_tokens": np.array([tokens for tokens, _ in wanted], dtype=np.int64),
        "wanted_remaining": np.array([remaining for _, remaining in wanted], dtype=np.int64),
        "block_tokens": BLOCK,
        "total_blocks": 100,
        "free_blocks": 100 - int((-(-context // BLOCK)).sum()),
        "busy_blocks": 0,
        "max_running": 64,
    }
    return DecodeView(**(values | changes))  # type: ignore[arg-type]


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


@given(sequences)
def test_forecast_of_ready_rows_equals_simulation(running: Pairs) -> None:
    assert forecast_peak_blocks(make_view(running, [])) == peak_by_simulation(running, [])


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


@given(sequences, st.integers(0, 8))
def test_rows_chosen_have_blocks_and_the_oldest_go_first(running: Pairs, free: int) -> None:
    view = make_view(running, [], free_blocks=free)
    plan = decide(view, 0.0)
    wants = [tokens % BLOCK == 0 for tokens, _ in running]
    assert sum(wants[row] for row in plan.decode_rows) <= free
    left_out = [row for row in range(len(running)) if row not in plan.decode_rows]
    assert all(wants[row] for row in left_out)
    assert all(row < min(left_out, default=99) for row in plan.decode_rows if wants[row])
    assert (plan.wait is Wait.DECODE_BLOCKS) == bool(left_out)
    assert plan.demote_blocks == len(left_out)


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


@given(sequences.filter(lambda running: any(r > 0 for _, r in running)))
def test_the_decision_repeats_until_a_sequence_ends(running: Pairs) -> None:
    running = [(tokens, remaining) for tokens, remaining in running if remaining > 0]
    plan = decide(make_view(running, [], free_blocks=1000), 0.0)
    for _ in range(plan.repeat - 1):
        running = [(tokens + 1, remaining - 1) for tokens, remaining in running]
        assert decide(make_view(running, [], free_blocks=1000), 0.0).decode_rows == plan.decode_rows
    assert min(remaining for _, remaining in running) == 1
