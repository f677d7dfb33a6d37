"""The search for the largest rate, on made-up curves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.rate_search import RateSearch, Trial, rounded_rate, search_rate


def search(knee: float, low: float = 1.0, high: float = 1000.0) -> RateSearch:
    return search_rate(lambda rate: [(1.0 if rate <= knee else 0.5, {"rate": rate})], low, high, 0.9)


@given(st.floats(1.0, 900.0))
def test_the_knee_is_found_within_the_precision(knee: float):
    found = search(knee)
    assert found.rate_rps is not None
    assert found.missed_rps is not None
    assert found.rate_rps <= knee <= found.missed_rps <= found.rate_rps / (1 - 0.02)
    assert found.is_monotone
    assert found.is_bounded


@given(st.floats(0.001, 100.0), st.floats(1.0, 1000.0), st.floats(0.0, 1.0))
def test_every_rate_has_four_digits_and_is_run_once(low: float, times: float, share: float):
    rates: list[float] = []

    def run(rate: float) -> list[Trial]:
        rates.append(rate)
        return [(1.0 if rate <= low * times**share else 0.0, {})]

    found = search_rate(run, low, low * times, 0.9)
    assert all(float(f"{rate:.4g}") == rate for rate in rates)
    assert sorted(rates) == [point.rate_rps for point in found.points]
    assert len(set(rates)) == len(rates)


def test_points_ascend_and_carry_their_reports():
    found = search(10.0)
    rates = [point.rate_rps for point in found.points]
    assert rates == sorted(rates)
    assert all(point.trials[0][1] == {"rate": point.rate_rps} for point in found.points)


def test_the_mean_over_the_runs_decides_and_the_spread_is_kept():
    def run(rate: float) -> list[Trial]:
        return [(1.0, {"x": 1.0}), (0.82 if rate <= 20 else 0.7, {"x": None})]

    found = search_rate(run, 1.0, 1000.0, 0.9)
    assert found.found is not None
    assert 19 < found.found.rate_rps <= 20
    assert (found.found.least, found.found.most) == (0.82, 1.0)
    assert found.found.attainment == pytest.approx(0.91)
    assert found.found.mean(lambda report: report["x"]) == 1.0


def test_no_rate_is_found_where_the_lowest_misses():
    found = search(0.5)
    assert (found.rate_rps, found.missed_rps, len(found.points)) == (None, 1.0, 1)
    assert found.found is None


def test_the_highest_is_not_called_a_bound_where_it_still_keeps():
    found = search(5000.0)
    assert (found.rate_rps, found.missed_rps, found.is_bounded) == (1000.0, None, False)


def test_one_rate_is_one_point():
    assert len(search(10.0, 5.0, 5.0).points) == 1


@pytest.mark.parametrize(("dip", "is_monotone"), [(0.93, False), (0.995, True)])
def test_an_attainment_that_rises_with_the_rate_is_told(dip: float, is_monotone: bool):
    def run(rate: float) -> list[Trial]:
        return [(dip if rate < 2 else 1.0 if rate < 500 else 0.1, {})]

    assert search_rate(run, 1.0, 1000.0, 0.9).is_monotone is is_monotone


def test_rates_are_rounded_to_four_digits():
    assert [rounded_rate(rate) for rate in (0.123456, 12.3456, 123456.0)] == [0.1235, 12.35, 123500.0]
