"""The joint fit, and what its errors mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.router.estimate import LinearForm
from twinpool.router.latency_fit import Region, StepRows, errors_by_region, fit_linear

GRID = np.array(
    [
        *[(n, float(n * n), 0, 0) for n in (16, 64, 256, 1024, 2048)],
        (256, 512.0**2 - 256.0**2, 0, 0),  # a later chunk
        *[(0, 0, batch * context, batch) for batch in (1, 4, 16, 64) for context in (32, 500)],
        *[(n, float(n * n), 100 * batch, batch) for n in (64, 512) for batch in (1, 8)],
    ]
).T
COEFFICIENT = st.floats(1e-6, 1.0)


def rows_of(form: LinearForm, factor: float = 1.0) -> StepRows:
    return StepRows(GRID[0], GRID[1], GRID[2], GRID[3], form.seconds(*GRID) * factor)


@settings(max_examples=50, deadline=None)
@given(st.builds(LinearForm, *[COEFFICIENT] * 6))
def test_exact_rows_give_their_form_back_whichever_fixed_term_is_larger(form: LinearForm) -> None:
    fit = fit_linear(rows_of(form))
    np.testing.assert_allclose(fit.form.seconds(*GRID), form.seconds(*GRID), rtol=1e-5)
    assert max(error.p90 for error in fit.errors.values()) < 1e-5


def test_noisy_rows_give_errors_of_the_noise() -> None:
    form, noise = LinearForm(), np.random.default_rng(0).uniform(0.9, 1.1, GRID.shape[1])
    fit = fit_linear(StepRows(GRID[0], GRID[1], GRID[2], GRID[3], form.seconds(*GRID) * noise))
    assert set(fit.errors) == set(Region)
    assert all(error.p90 < 0.2 for error in fit.errors.values())
    assert any(error.median > 0.01 for error in fit.errors.values())


def test_errors_are_relative_and_told_by_region() -> None:
    errors = errors_by_region(LinearForm(), rows_of(LinearForm(), factor=2.0))
    assert all((error.median, error.p90) == pytest.approx((0.5, 0.5)) for error in errors.values())
    assert {str(region): error.count for region, error in errors.items()} == {
        "prefill_short": 4,
        "prefill_long": 2,
        "decode_small": 4,
        "decode_large": 4,
        "mixed": 4,
    }


def test_what_no_row_speaks_of_costs_nothing_and_has_no_error() -> None:
    prefills = rows_of(LinearForm()).where(GRID[3] == 0)
    fit = fit_linear(prefills)
    assert (fit.form.decode_alpha_s, fit.form.decode_beta_s, fit.form.decode_gamma_s) == (0, 0, 0)
    assert set(fit.errors) == {Region.PREFILL_SHORT, Region.PREFILL_LONG}
