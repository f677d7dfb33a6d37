"""Power by how full a step is, and caps."""

import numpy as np
import pytest

from twinpool.router.estimate import LinearForm
from twinpool.router.power import CappedForm, PowerForm

FORM = PowerForm(idle_w=100.0, prefill_w=700.0, decode_w=400.0, full_prefill_tokens=1000, full_batch=10)


def test_power_grows_with_the_step_up_to_a_full_one() -> None:
    assert [FORM.step_watts(tokens, 0) for tokens in (0, 500, 1000, 9000)] == [100, 400, 700, 700]
    assert [FORM.step_watts(0, batch) for batch in (0, 5, 10, 99)] == [100, 250, 400, 400]


def test_a_mixed_step_draws_the_larger_of_its_parts() -> None:
    assert FORM.step_watts(1000, 5) == 700
    assert FORM.step_watts(10, 10) == 400


def test_a_step_draws_at_least_what_its_phase_does() -> None:
    form = PowerForm(100.0, 700.0, 400.0, prefill_least_w=300.0, decode_least_w=350.0, full_batch=10)
    assert form.step_watts(0, 0) == 100
    assert 300 < form.step_watts(1, 0) < 301
    assert form.step_watts(0, 5) == 375


def test_a_cap_is_never_passed() -> None:
    capped = PowerForm(100.0, 700.0, 400.0, cap_w=350.0)
    assert max(capped.step_watts(tokens, batch) for tokens in (0, 100, 4000) for batch in (0, 1, 64)) == 350


def test_under_a_cap_prefill_slows_down_and_decoding_does_not() -> None:
    form = LinearForm(1.0, 0.01, 0.0, 0.5, 0.001, 0.1)
    capped = CappedForm(form, 1.3)
    assert capped.seconds(100.0, 0.0, 0.0, 0.0) == pytest.approx(1.3 * form.seconds(100.0, 0.0, 0.0, 0.0))
    assert capped.seconds(0.0, 0.0, 50.0, 2.0) == form.seconds(0.0, 0.0, 50.0, 2.0)
    assert capped.decode_seconds(50.0, 2, 9) == form.decode_seconds(50.0, 2, 9)
    more = form.seconds(100.0, 0.0, 50.0, 2.0) - form.seconds(0.0, 0.0, 50.0, 2.0)
    both = np.array([[100.0], [0.0], [50.0], [2.0]])
    assert capped.seconds(*both)[0] == pytest.approx(form.seconds(0.0, 0.0, 50.0, 2.0) + 1.3 * more)
