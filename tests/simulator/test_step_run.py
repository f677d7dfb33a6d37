"""Steps under way: their times, what is over of them, and their noise."""

import random
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.router.estimate import LinearForm
from twinpool.simulator.step_run import MOST_STEPS, StepRun, draw_mean_noise

FORM = LinearForm(5e-3, 1e-4, 3e-8, 10e-3, 7e-7, 1.3e-4)


def run(num_steps: int = 8, **more: object) -> StepRun:
    """Three sequences that decode."""
    return StepRun(FORM, num_steps=num_steps, rows=np.arange(3), context_tokens=600, prompts=[],
                   **({"factor": 2.0, "started_s": 1.0} | more))  # type: ignore[arg-type]  # fmt: skip


def test_the_first_step_alone_takes_what_handoffs_cost_beside():
    plain, longer = run(), run(extra_s=4e-3)
    for num_steps in range(1, 9):
        assert longer.seconds(num_steps) == pytest.approx(plain.seconds(num_steps) + 2 * 4e-3)


@given(st.integers(1, MOST_STEPS), st.floats(0.0, 1.5), st.floats(0.0, 0.5), st.integers(0, 999), st.floats(0.0, 1.0))
def test_as_many_steps_are_over_as_have_ended(num_steps: int, sigma: float, extra_s: float, seed: int, share: float):
    noise = draw_mean_noise(random.Random(seed), sigma, num_steps)
    steps = run(num_steps, extra_s=extra_s, mean_noise=noise)
    ends_s = [steps.seconds(number) for number in range(1, num_steps + 1)]
    assert ends_s == sorted(ends_s)
    now = 1.0 + share * ends_s[-1]
    assert steps.steps_done(now) == sum(end_s <= now - 1.0 for end_s in ends_s)


def test_a_run_that_is_cut_has_the_noise_of_the_steps_that_it_ran():
    draw, sigma = random.Random(3), 0.3
    drawn = [draw_mean_noise(draw, sigma, 16) for _ in range(4000)]
    for num_steps in (1, 4, 16):
        means = [noise[num_steps - 1] for noise in drawn]
        assert fmean(means) == pytest.approx(1.0, abs=0.02)
        one_step = (np.exp(sigma**2) - 1) ** 0.5
        assert stdev(means) == pytest.approx(one_step / num_steps**0.5, rel=0.08)


def test_without_noise_nothing_is_drawn():
    draw = random.Random(0)
    before = draw.getstate()
    assert draw_mean_noise(draw, 0.0, 16) == ()
    assert draw.getstate() == before
