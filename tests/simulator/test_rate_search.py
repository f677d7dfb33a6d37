"""The search for the largest rate, on made-up curves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.rate_search import RateSearch, search_rate


def search(knee: float, low: float = 1.0, high: float = 1000.0) -> RateSearch:
    return search_rate(lambda rate: (1.0 if rate <= knee else 0.5, {"rate": rate}), low, high, 0.9)


@given(st.floats(1.0, 900.0))
def test_the_knee_is_found_within_the_precision(knee: float):
    found = search(knee)
    assert found.rate_rps is not None
    assert found.rate_rps <= knee <= found.rate_rps / (1 - 0.02)
    assert found.is_monotone
    assert found.is_bounded


def test_points_ascend_and_carry_their_reports():
    found = search(10.0)
    rates = [point.rate_rps for point in found.points]
    assert rates == sorted(rates)
    assert all(point.report == {"rate": point.rate_rps} for point in found.points)


def test_no_rate_is_found_where_the_lowest_misses():
    found = search(0.5)
    assert (found.rate_rps, len(found.points)) == (None, 1)


def test_the_highest_is_not_called_a_bound_where_it_still_keeps():
    found = search(5000.0)
    assert (found.rate_rps, found.is_bounded) == (1000.0, False)


def test_one_rate_is_one_run():
    assert len(search(10.0, 5.0, 5.0).points) == 1


@pytest.mark.parametrize(("dip", "is_monotone"), [(0.93, False), (0.995, True)])
def test_an_attainment_that_rises_with_the_rate_is_told(dip: float, is_monotone: bool):
    def run(rate: float) -> tuple[float, dict[str, float]]:
        return (dip if rate < 2 else 1.0 if rate < 500 else 0.1), {}

    assert search_rate(run, 1.0, 1000.0, 0.9).is_monotone is is_monotone
