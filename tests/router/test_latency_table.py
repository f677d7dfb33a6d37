"""Tables of profiled points: read honestly, and read as the original simulator does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.router.latency_fit import errors_by_region
from twinpool.router.latency_table import (
    Curve,
    ProfilePoint,
    TableForm,
    median_points,
    original_rule_form,
    step_rows,
    table_form,
    without_split_batches,
)


def prompt_s(tokens: int) -> float:
    return 0.05 + 1e-4 * tokens


def token_s(batch: int, context: float) -> float:
    return 0.02 + 1e-3 * batch + 1e-7 * batch * context


def point(prompt: int, batch: int, output: int = 128) -> ProfilePoint:
    return ProfilePoint(prompt, batch, output, prompt_s(prompt * batch), token_s(batch, prompt + output / 2))


POINTS = [
    *[point(prompt, 1) for prompt in (128, 512, 1024, 2048)],
    *[point(512, batch) for batch in (2, 4, 8, 16)],
    *[point(512, 1, output) for output in (256, 1024)],
]
FORM = table_form(POINTS)


def test_profiled_points_come_back() -> None:
    errors = errors_by_region(FORM, step_rows(POINTS))
    assert max(error.p90 for error in errors.values()) < 1e-3


def test_prefill_is_interpolated_and_extended_from_the_last_two_points() -> None:
    assert FORM.seconds(700.0, 0.0, 0.0, 0.0) == pytest.approx(prompt_s(700))
    assert FORM.seconds(20_000.0, 0.0, 0.0, 0.0) == pytest.approx(prompt_s(20_000))


def test_what_is_smaller_than_all_points_costs_as_much_as_the_smallest() -> None:
    assert FORM.seconds(1.0, 1.0, 0.0, 0.0) == pytest.approx(prompt_s(128))


def test_a_decode_step_costs_by_batch_and_by_context() -> None:
    assert FORM.seconds(0.0, 0.0, 6 * 900.0, 6.0) == pytest.approx(token_s(6, 900), rel=1e-3)
    assert FORM.seconds(0.0, 0.0, 64 * 4000.0, 64.0) == pytest.approx(token_s(64, 4000), rel=0.02)


def test_a_mixed_step_reads_the_weights_once() -> None:
    alone, decode = FORM.seconds(1024.0, 0.0, 0.0, 0.0), FORM.seconds(0.0, 0.0, 8 * 576.0, 8.0)
    both = FORM.seconds(1024.0, 0.0, 8 * 576.0, 8.0)
    assert both == pytest.approx(alone + decode - FORM.floor_s)
    assert alone < both < alone + decode


def test_no_work_takes_no_time() -> None:
    for form in (FORM, original_rule_form(POINTS)):
        assert form.seconds(0.0, 0.0, 0.0, 0.0) == 0.0
        assert form.decode_seconds(0.0, 0, 5) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.integers(1, 100), st.integers(0, 60), st.booleans())
def test_many_decode_steps_take_the_sum_of_each(context: int, batch: int, num_steps: int, original: bool) -> None:
    form = original_rule_form(POINTS) if original else FORM
    each = [form.seconds(0.0, 0.0, float(context + i * batch), float(batch)) for i in range(num_steps)]
    assert form.decode_seconds(context, batch, num_steps) == pytest.approx(sum(each))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 5000)] * 4), min_size=1, max_size=5), st.booleans())
def test_arrays_take_what_their_numbers_take(rows: list[tuple[int, int, int, int]], original: bool) -> None:
    form = original_rule_form(POINTS) if original else FORM
    expected = [form.seconds(*(float(value) for value in row)) for row in rows]
    np.testing.assert_allclose(form.seconds(*np.array(rows, np.float64).T), expected)


def test_repeats_count_as_their_median() -> None:
    repeats = [ProfilePoint(512, 1, 128, prompt, token) for prompt, token in ((1.0, 0.1), (9.0, 0.2), (2.0, 0.9))]
    assert median_points(repeats) == [ProfilePoint(512, 1, 128, 2.0, 0.2)]


def test_a_batch_that_was_run_in_pieces_is_left_out() -> None:
    split = ProfilePoint(512, 64, 128, 0.6 * prompt_s(2048), 0.03)
    noisy = ProfilePoint(512, 32, 128, 0.9 * prompt_s(512 * 16), 0.03)
    assert without_split_batches([*POINTS, split, noisy]) == sorted([*POINTS, noisy], key=lambda p: p.total_tokens)
    assert table_form([*POINTS, split]) == FORM


def test_the_original_rule_makes_batch_and_context_of_decoding_free() -> None:
    form = original_rule_form(POINTS)
    few = form.seconds(0.0, 0.0, 1000.0, 1.0)
    assert form.seconds(0.0, 0.0, 1e6, 1.0) == few
    assert form.seconds(0.0, 0.0, 1e6, 64.0) == pytest.approx(few, rel=0.05)  # looked up as a prompt of 64 tokens


def test_the_original_rule_adds_a_tenth_to_mixed_steps() -> None:
    form = original_rule_form(POINTS)
    assert form.seconds(1000.0, 0.0, 5000.0, 24.0) == pytest.approx(1.1 * prompt_s(1024))
    assert form.seconds(1024.0, 0.0, 0.0, 0.0) == pytest.approx(prompt_s(1024))


def test_the_original_rule_goes_on_below_the_smallest_point() -> None:
    assert original_rule_form(POINTS).seconds(28.0, 0.0, 0.0, 0.0) == pytest.approx(prompt_s(28))


@pytest.mark.parametrize("points", [[point(512, 1)], [point(512, 1), point(1024, 1)]])
def test_too_few_points_are_refused(points: list[ProfilePoint]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        table_form(points)


def test_a_curve_is_exact_at_its_points() -> None:
    curve = Curve((1.0, 2.0, 4.0), (5.0, 7.0, 3.0))
    np.testing.assert_allclose(curve.at(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])), [5, 5, 7, 5, 3, 1])
    assert curve.at(1.5) == 6.0
    assert isinstance(FORM, TableForm)
