"""The sketch of quantiles against numpy's percentiles of the same numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.sketch import RELATIVE_ERROR, Sketch

NUMBERS = st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=200)
SHARES = st.floats(0, 1)
SLACK = 1e-9  # of floating point, at a bucket's edge


def sketch_of(numbers: list[float]) -> Sketch:
    sketch = Sketch()
    sketch.add_many(numbers)
    return sketch


def is_near(found: float | None, wanted: float) -> bool:
    return found is not None and abs(found - wanted) <= (RELATIVE_ERROR + SLACK) * wanted


@given(NUMBERS, SHARES)
def test_a_quantile_is_within_the_relative_error_of_numpys(numbers: list[float], share: float):
    assert is_near(sketch_of(numbers).quantile(share), float(np.quantile(numbers, share)))


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 20)), min_size=1, max_size=50), SHARES)
def test_a_weight_counts_as_so_many_numbers(pairs: list[tuple[float, int]], share: float):
    sketch = Sketch()
    for value, weight in pairs:
        sketch.add(value, weight)
    alone = [value for value, weight in pairs for _ in range(weight)]
    assert is_near(sketch.quantile(share), float(np.quantile(alone, share)))
    assert sketch.count == len(alone)


@given(NUMBERS, NUMBERS, SHARES)
def test_merged_sketches_are_the_sketch_of_all(ones: list[float], others: list[float], share: float):
    merged, other = sketch_of(ones), sketch_of(others)
    merged.merge(other)
    both = sketch_of(ones + others)
    assert merged.quantile(share) == both.quantile(share)
    assert (merged.count, merged.least, merged.largest) == (both.count, both.least, both.largest)
    assert other.count == len(others)


@given(NUMBERS)
def test_count_sum_and_ends_are_exact(numbers: list[float]):
    sketch = sketch_of(numbers)
    assert sketch.count == len(numbers)
    assert sketch.sum == pytest.approx(sum(numbers), rel=1e-12)
    assert sketch.mean == pytest.approx(float(np.mean(numbers)), rel=1e-12)
    assert (sketch.least, sketch.largest) == (min(numbers), max(numbers))
    assert (sketch.quantile(0), sketch.quantile(1)) == (
        pytest.approx(min(numbers), rel=RELATIVE_ERROR + SLACK),
        pytest.approx(max(numbers), rel=RELATIVE_ERROR + SLACK),
    )


@given(NUMBERS)
def test_numbers_added_one_by_one_count_as_those_added_together(numbers: list[float]):
    single = Sketch()
    for number in numbers:
        single.add(number)
    assert single.percentiles() == sketch_of(numbers).percentiles()


def test_more_numbers_than_the_buffer_holds_are_all_counted():
    numbers = np.random.default_rng(0).lognormal(0, 2, 10_000)
    sketch = Sketch()
    for number in numbers:
        sketch.add(float(number))
    assert sketch.count == 10_000
    assert is_near(sketch.percentiles()["p99"], float(np.percentile(numbers, 99)))


def test_zeros_and_numbers_beyond_the_ends_are_counted_there():
    sketch = sketch_of([0.0, 0.0, 0.0, 1e12])
    assert sketch.quantile(0.5) == 0.0
    assert sketch.largest == 1e12
    assert sketch_of([1e-300]).quantile(0.5) == 1e-300  # clipped to the exact ends


def test_an_empty_sketch_has_no_percentiles():
    sketch = Sketch()
    assert sketch.percentiles() == {"p50": None, "p90": None, "p99": None}
    assert (sketch.count, sketch.mean, sketch.least, sketch.largest) == (0, None, None, None)
    assert [len(array) for array in sketch.cumulative()] == [0, 0]
    sketch.add(1.0, 0.0)
    assert sketch.quantile(0.5) is None


@pytest.mark.parametrize(("value", "weight"), [(-1.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, -1.0)])
def test_numbers_that_no_bucket_holds_are_refused(value: float, weight: float):
    sketch = Sketch()
    sketch.add(value, weight)
    with pytest.raises(ValueError, match="at least 0"):
        _ = sketch.count


@given(NUMBERS)
def test_the_distribution_rises_to_one(numbers: list[float]):
    values, shares = sketch_of(numbers).cumulative()
    assert (np.diff(values) > 0).all() or len(values) == 1
    assert (np.diff(shares) > 0).all()
    assert shares[-1] == pytest.approx(1)
    assert len(values) <= len(numbers)


def test_scaling_changes_weights_and_no_value():
    sketch = sketch_of([1.0, 2.0, 3.0])
    half = sketch.scaled(0.5)
    assert (half.count, half.sum, half.least, half.largest) == (1.5, 3.0, 1.0, 3.0)
    assert sketch.count == 3
    assert sketch.scaled(0).quantile(0.5) is None
