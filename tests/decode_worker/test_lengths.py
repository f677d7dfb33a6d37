"""Predicted lengths: between what is written and what is allowed, and spread as the history is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinpool.decode_worker.lengths import MIN_HISTORY, LengthHistory


def history_of(lengths: list[int], capacity: int = 1000) -> LengthHistory:
    history = LengthHistory(capacity)
    for length in lengths:
        history.add(length)
    return history


def predict(history: LengthHistory, written: int, limit: int, num_turns: int = 1) -> NDArray[np.int64]:
    turns = np.arange(num_turns)
    return history.predict(np.full(num_turns, written), np.full(num_turns, limit), turns)


@given(st.lists(st.integers(1, 50), max_size=60), st.lists(st.tuples(st.integers(0, 80), st.integers(1, 80))))
def test_predictions_lie_above_what_is_written_and_within_the_limit(
    lengths: list[int], rows: list[tuple[int, int]]
) -> None:
    written = np.array([tokens for tokens, _ in rows], dtype=np.int64)
    limits = np.array([tokens + more for tokens, more in rows], dtype=np.int64)
    predicted = history_of(lengths).predict(written, limits, np.arange(len(rows)))
    assert (predicted > written).all()
    assert (predicted <= limits).all()


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 30))
def test_only_the_most_recent_answers_count(lengths: list[int], capacity: int) -> None:
    history = history_of(lengths, capacity)
    history.check()
    assert len(history) == min(len(lengths), capacity)
    recent = history_of(lengths[-capacity:])
    assert predict(history, 0, 99, 10).tolist() == predict(recent, 0, 99, 10).tolist()
    assert history.error_tokens == recent.error_tokens


def test_with_too_little_history_the_limit_is_expected() -> None:
    history = history_of([3] * (MIN_HISTORY - 1))
    assert predict(history, 0, 500).tolist() == [500]
    assert history.error_tokens == 0
    history.add(3)
    assert predict(history, 0, 500).tolist() == [3]


@pytest.mark.parametrize("written", [0, 40, 90])
def test_a_batch_is_spread_over_the_lengths_that_remain_possible(written: int) -> None:
    history = history_of(list(range(1, 101)))
    predicted = predict(history, written, 1000, 64)
    possible = np.arange(written + 1, 101)
    assert set(predicted.tolist()) <= set(possible.tolist())
    assert abs(predicted.mean() - possible.mean()) < 0.03 * len(possible)  # 64 independent draws err by 4 %
    assert predicted.max() > possible[-1] - 0.05 * len(possible)


def test_an_answer_longer_than_all_known_ones_is_half_done() -> None:
    history = history_of([10] * MIN_HISTORY)
    assert predict(history, 10, 500).tolist() == [20]
    assert predict(history, 300, 500).tolist() == [500]
