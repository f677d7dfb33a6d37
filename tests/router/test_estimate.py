"""The latency forms and the fit of a link."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.model.modelled_shape import StepLatency
from twinpool.router.estimate import LinearForm, LinkCost, fit_link, fit_relative

COEFFICIENT = st.floats(0.0, 1.0)
FORMS = st.builds(LinearForm, *[COEFFICIENT] * 6)
CHUNKS = st.lists(st.tuples(st.integers(0, 300), st.integers(2, 300)), max_size=4)  # tokens before a chunk, its tokens
CONTEXTS = st.lists(st.integers(2, 5000), max_size=6)


@settings(max_examples=60, deadline=None)
@given(FORMS, CHUNKS, CONTEXTS)
def test_a_step_takes_what_the_modelled_runner_takes_for_it(
    form: LinearForm, chunks: list[tuple[int, int]], contexts: list[int]
) -> None:
    latency = StepLatency(
        form.prefill_a_s,
        form.prefill_b_s,
        form.prefill_c_s,
        form.decode_alpha_s,
        form.decode_beta_s,
        form.decode_gamma_s,
    )
    new = np.array([tokens for _, tokens in chunks] + [1] * len(contexts), np.int64)
    ends = np.array([before + tokens for before, tokens in chunks] + contexts, np.int64)
    squares = sum((before + tokens) ** 2 - before**2 for before, tokens in chunks)
    ours = form.seconds(float(sum(tokens for _, tokens in chunks)), float(squares), float(sum(contexts)), len(contexts))
    assert ours == pytest.approx(latency.step_s(new, ends))


def test_no_work_takes_no_time() -> None:
    assert LinearForm().seconds(0.0, 0.0, 0.0, 0.0) == 0.0
    assert LinearForm().decode_seconds(0.0, 0, 10) == 0.0
    assert LinearForm().decode_seconds(100.0, 4, 0) == 0.0


@settings(max_examples=60, deadline=None)
@given(FORMS, st.integers(0, 10_000), st.integers(1, 64), st.integers(0, 200))
def test_many_decode_steps_take_the_sum_of_each(form: LinearForm, context: int, batch: int, num_steps: int) -> None:
    each = [form.seconds(0.0, 0.0, float(context + i * batch), float(batch)) for i in range(num_steps)]
    assert form.decode_seconds(context, batch, num_steps) == pytest.approx(sum(each))


@settings(max_examples=30, deadline=None)
@given(FORMS, st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=5))
def test_arrays_take_what_their_numbers_take(form: LinearForm, rows: list[tuple[int, int, int, int]]) -> None:
    table = np.array(rows, np.float64).T
    expected = [form.seconds(*(float(value) for value in row)) for row in rows]
    np.testing.assert_array_equal(form.seconds(*table), expected)


def test_a_fit_of_exact_transfers_finds_latency_and_bandwidth() -> None:
    num_bytes = np.array([1e3, 1e6, 1e8])
    found = fit_link(num_bytes, LinkCost(2e-3, 1e9).seconds(num_bytes))
    assert (found.latency_s, found.bytes_per_s) == pytest.approx((2e-3, 1e9))


def test_transfers_that_take_no_longer_when_larger_mean_infinite_bandwidth() -> None:
    found = fit_link(np.array([1e3, 1e6]), np.array([2e-3, 1e-3]))
    assert found.bytes_per_s == float("inf")
    assert found.latency_s > 0


def test_noise_never_makes_a_coefficient_negative() -> None:
    rng = np.random.default_rng(0)
    tokens = np.array([16.0, 64.0, 256.0, 1024.0, 2048.0])
    terms = np.stack([np.ones(5), tokens, tokens**2], axis=1)
    for _ in range(50):
        noisy = (1e-2 + 1e-5 * tokens) * rng.uniform(0.5, 1.5, 5)
        assert min(fit_relative(terms, noisy)) >= 0


def test_the_fit_weighs_relative_errors() -> None:
    num_bytes = np.array([1.0, 1.0, 1e9, 1e9])
    seconds = np.array([0.9e-3, 1.1e-3, 0.9, 1.1])
    found = fit_link(num_bytes, seconds)
    assert found.seconds(1.0) == pytest.approx(1e-3, rel=0.05)
    assert found.seconds(1e9) == pytest.approx(1.0, rel=0.05)
