"""Prefill batching: budgets kept, order kept, nothing starved."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twinpool.model.step import Chunk, Wait
from twinpool.prefill_worker.batching import PrefillView, decide

# (remaining tokens, blocks needed, may park)
Rows = list[tuple[int, int, bool]]
rows_strategy = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20), st.booleans()), max_size=8)


def make_view(rows: Rows, **changes: object) -> PrefillView:
    values: dict[str, object] = {
        "remaining_tokens": np.array([row[0] for row in rows], dtype=np.int64),
        "need_blocks": np.array([row[1] for row in rows], dtype=np.int64),
        "may_park": np.array([row[2] for row in rows], dtype=np.bool_),
        "token_budget": 32,
        "spare_blocks": 40,
        "parked_blocks": 0,
        "parked_limit": 30,
    }
    return PrefillView(**(values | changes))  # type: ignore[arg-type]


@given(rows_strategy, st.integers(1, 64), st.integers(0, 40), st.integers(0, 30), st.integers(0, 30))
def test_budgets_hold_and_rows_go_in_order(rows: Rows, budget: int, spare: int, parked: int, limit: int) -> None:
    view = make_view(rows, token_budget=budget, spare_blocks=spare, parked_blocks=parked, parked_limit=limit)
    plan = decide(view, 0.0)
    chosen = [chunk.row for chunk in plan.chunks]
    starting = [row for row in chosen if rows[row][1]]
    assert chosen == sorted(set(chosen))
    assert sum(chunk.num_tokens for chunk in plan.chunks) <= budget
    assert all(1 <= chunk.num_tokens <= rows[chunk.row][0] for chunk in plan.chunks)
    assert sum(rows[row][1] for row in starting) <= spare
    new_parked = sum(rows[row][1] for row in starting if rows[row][2])
    assert new_parked == 0 or parked + new_parked <= limit or parked == 0
    left_out = [row for row in range(len(rows)) if row not in chosen]
    if left_out and sum(chunk.num_tokens for chunk in plan.chunks) < budget:
        assert plan.wait is not Wait.NOTHING
        assert all(rows[row][1] for row in left_out)  # rows that hold their blocks always go on
        assert all(row < min(left_out) for row in starting)  # and none that needs blocks overtakes


def test_only_the_last_chunk_is_cut_short() -> None:
    plan = decide(make_view([(20, 2, False), (20, 2, False)]), 0.0)
    assert plan.chunks == (Chunk(0, 20), Chunk(1, 12))


def test_a_prompt_without_blocks_is_not_overtaken() -> None:
    plan = decide(make_view([(8, 50, False), (8, 1, False)]), 0.0)
    assert plan.chunks == ()
    assert plan.wait is Wait.PREFILL_BLOCKS


def test_prompts_for_full_decode_workers_wait_at_the_parked_limit() -> None:
    plan = decide(make_view([(8, 4, True)], parked_blocks=28), 0.0)
    assert plan.wait is Wait.PREFILL_PARKED


def test_one_prompt_over_the_parked_limit_may_go_when_nothing_is_parked() -> None:
    plan = decide(make_view([(8, 35, True), (8, 1, True)]), 0.0)
    assert plan.chunks == (Chunk(0, 8),)
    assert plan.wait is Wait.PREFILL_PARKED


def test_prompts_that_hold_their_blocks_go_on_behind_one_that_waits() -> None:
    plan = decide(make_view([(8, 50, False), (8, 0, True)], spare_blocks=-3, parked_blocks=99), 0.0)
    assert plan.chunks == (Chunk(1, 8),)
    assert plan.wait is Wait.PREFILL_BLOCKS
