"""The latency forms and their fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.router.estimate import LinkCost, PrefillCost, StepCost, fit_link, fit_prefill, fit_step

TOKENS = np.array([16.0, 64.0, 256.0, 1024.0, 2048.0])
POSITIVE = st.floats(1e-6, 1.0)


@settings(max_examples=30, deadline=None)
@given(POSITIVE, POSITIVE, POSITIVE)
def test_a_fit_of_exact_prefills_finds_their_coefficients(a: float, b: float, c: float) -> None:
    true = PrefillCost(a, b, c)
    seconds = true.seconds(TOKENS, TOKENS**2)
    found = fit_prefill(TOKENS, TOKENS**2, seconds)
    np.testing.assert_allclose(found.seconds(TOKENS, TOKENS**2), seconds, rtol=1e-6)


def test_a_fit_of_exact_steps_finds_their_coefficients() -> None:
    true = StepCost(4e-3, 2e-7, 1e-4)
    context = np.array([100.0, 4000.0, 900.0, 64000.0, 10.0])
    batch = np.array([1.0, 4.0, 16.0, 32.0, 2.0])
    found = fit_step(context, batch, true.seconds(context, batch))
    assert (found.alpha_s, found.beta_s_per_token, found.gamma_s_per_sequence) == pytest.approx((4e-3, 2e-7, 1e-4))


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
    for _ in range(50):
        noisy = PrefillCost(1e-2, 1e-5, 0.0).seconds(TOKENS, TOKENS**2) * rng.uniform(0.5, 1.5, len(TOKENS))
        found = fit_prefill(TOKENS, TOKENS**2, noisy)
        assert min(found.a_s, found.b_s_per_token, found.c_s_per_token2) >= 0


def test_the_fit_weighs_relative_errors() -> None:
    num_bytes = np.array([1.0, 1.0, 1e9, 1e9])
    seconds = np.array([0.9e-3, 1.1e-3, 0.9, 1.1])
    found = fit_link(num_bytes, seconds)
    assert found.seconds(1.0) == pytest.approx(1e-3, rel=0.05)
    assert found.seconds(1e9) == pytest.approx(1.0, rel=0.05)
