"""Arrivals are a function of their seed, at the rate and burstiness asked for."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import SpecError
from twinpool.simulator.traces.arrivals import Process, Step, draw_arrivals, stream_arrivals


@given(st.integers(0, 2**32), st.sampled_from(list(Process)), st.floats(0.5, 50), st.floats(1, 40), st.floats(0.2, 5))
def test_arrivals_ascend_within_the_duration_and_a_longer_load_begins_the_same(
    seed: int, process: Process, rate: float, duration_s: float, cv: float
) -> None:
    def draw(seconds: float) -> list[float]:
        try:
            rng = np.random.default_rng(seed)
            return draw_arrivals(rng, process, rate, duration_s=seconds, cv=cv).tolist()
        except SpecError:
            return []

    times, longer = draw(duration_s), draw(3 * duration_s)
    assert times == sorted(times)
    assert all(0 <= time < duration_s for time in times)
    assert times == [time for time in longer if time < duration_s]


@pytest.mark.parametrize("count", [1, 7, 1024, 1025, 5000])
def test_as_many_requests_arrive_as_asked_for(count: int) -> None:
    times = draw_arrivals(np.random.default_rng(0), Process.POISSON, 10.0, requests=count)
    assert len(times) == count
    fewer = draw_arrivals(np.random.default_rng(0), Process.POISSON, 10.0, requests=1)
    assert times[0] == fewer[0]


def test_the_tighter_of_two_bounds_holds() -> None:
    def draw(**bounds: float) -> int:
        return len(draw_arrivals(np.random.default_rng(0), Process.POISSON, 10.0, **bounds))  # type: ignore[arg-type]

    assert draw(duration_s=100.0, requests=5) == 5
    assert draw(duration_s=1.0, requests=500) == draw(duration_s=1.0) < 50


@pytest.mark.parametrize(("process", "cv"), [(Process.POISSON, 1.0), (Process.GAMMA, 4.0), (Process.GAMMA, 0.25)])
def test_gaps_have_the_mean_and_the_variation_asked_for(process: Process, cv: float) -> None:
    times = draw_arrivals(np.random.default_rng(1), process, 8.0, requests=200_000, cv=cv)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({}, "--duration or --requests"),
        ({"duration_s": 1e-9}, "nothing arrives"),
        ({"duration_s": 1e9}, "is over 1000000 requests"),
    ],
)
def test_a_load_without_bounds_or_requests_is_refused(bounds: dict[str, float], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        draw_arrivals(np.random.default_rng(0), Process.POISSON, 10.0, **bounds)  # type: ignore[arg-type]


def first_of(process: Process, steps: list[Step], count: int, cv: float = 1.0) -> list[float]:
    return list(islice(stream_arrivals(np.random.default_rng(5), process, steps, cv=cv), count))


@pytest.mark.parametrize(("process", "cv"), [(Process.POISSON, 1.0), (Process.GAMMA, 3.0), (Process.CONSTANT, 1.0)])
def test_a_stream_of_one_step_keeps_its_rate_and_its_order(process: Process, cv: float) -> None:
    times = first_of(process, [Step(8.0)], 100_000, cv)
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert times[-1] == pytest.approx(100_000 / 8, rel=0.03)


def test_constant_gaps_are_those_of_the_rate_in_force() -> None:
    steps = [Step(2.0, 1.0), Step(0.0, 2.0), Step(4.0, 3.0)]
    assert first_of(Process.CONSTANT, steps, 6) == [1.5, 2.0, 3.25, 3.5, 3.75, 4.0]


def test_each_step_has_its_own_rate() -> None:
    times = np.array(first_of(Process.POISSON, [Step(10.0), Step(40.0, 600.0)], 60_000))
    assert (times < 600).sum() == pytest.approx(6000, rel=0.05)
    assert ((times >= 600) & (times < 1200)).sum() == pytest.approx(24_000, rel=0.05)


def test_a_stream_ends_where_its_last_rate_is_zero() -> None:
    times = first_of(Process.POISSON, [Step(100.0), Step(0.0, 30.0)], 10**6)
    assert len(times) == pytest.approx(3000, rel=0.1)
    assert times[-1] < 30
