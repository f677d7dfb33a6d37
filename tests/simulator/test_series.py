"""Amounts over time against a brute-force integral."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.series import FIRST_WIDTH_S, MAX_BUCKETS, Series

SPANS = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 500), st.floats(0, 200), st.floats(0, 10)), min_size=1, max_size=20
)


@given(SPANS)
def test_each_bucket_has_its_part_of_each_span(spans: list[tuple[int, float, float, float]]):
    series = Series(2)
    rows, starts, lengths, levels = (np.array(column) for column in zip(*spans, strict=True))
    series.add(rows, starts, starts + lengths, levels)
    table, width = series.table(), series.width_s
    for row in (0, 1):
        for bucket in range(0, table.shape[1], 7):
            wanted = sum(
                level * max(0.0, min(start + length, (bucket + 1) * width) - max(start, bucket * width))
                for at, start, length, level in spans
                if at == row
            )
            assert table[row, bucket] == pytest.approx(wanted, abs=1e-6)


@given(SPANS)
def test_nothing_is_lost_when_buckets_double(spans: list[tuple[int, float, float, float]]):
    series = Series(2)
    for row, start, length, level in spans:
        series.add(*(np.array([value]) for value in (row, start, start + length, level)))
    assert series.table().sum() == pytest.approx(sum(length * level for _, _, length, level in spans), abs=1e-6)


def test_memory_is_bounded_however_long_the_run():
    series = Series(1)
    series.add(np.array([0]), np.array([0.0]), np.array([1.0]))
    assert (series.width_s, series.table().shape) == (FIRST_WIDTH_S, (1, 10))
    series.add(np.array([0]), np.array([1e6]), np.array([1e6 + 1]))
    assert series.table().shape[1] <= MAX_BUCKETS
    assert series.width_s * MAX_BUCKETS >= 1e6
    assert series.table().sum() == pytest.approx(2.0)


def test_a_series_may_start_late():
    series = Series(1, start_s=100.0)
    series.add(np.array([0]), np.array([99.9]), np.array([100.2]))
    assert series.table() == pytest.approx(np.array([[0.1, 0.1]]))
