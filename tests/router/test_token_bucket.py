"""Rates, bursts, debts, and clocks that jump."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.router.token_bucket import TokenBucket


def test_the_wait_is_what_is_missing_over_the_rate() -> None:
    bucket = TokenBucket.full(10, 100, now=0.0)
    assert bucket.wait_s(100, 0.0) == 0
    bucket.take(100, 0.0)
    assert bucket.wait_s(30, 0.0) == 3
    assert bucket.wait_s(30, 2.0) == 1
    assert bucket.wait_s(30, 3.0) == 0


def test_a_debt_is_paid_first() -> None:
    bucket = TokenBucket.full(10, 100, now=0.0)
    bucket.take(150, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(5.1)


def test_more_than_the_burst_is_had_when_the_bucket_is_full() -> None:
    bucket = TokenBucket.full(10, 100, now=0.0)
    assert bucket.wait_s(1000, 0.0) == 0
    bucket.take(1000, 0.0)
    assert bucket.wait_s(1000, 0.0) == 100
    assert bucket.is_full(100.0)


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 200)), max_size=30))
def test_over_any_time_no_more_is_had_than_burst_and_rate_allow_whatever_the_clock_does(
    steps: list[tuple[float, int]],
) -> None:
    bucket, now, latest, had = TokenBucket.full(10, 100, now=0.0), 0.0, 0.0, 0
    for jump_s, num_tokens in steps:
        now += jump_s
        latest = max(latest, now)
        if not bucket.wait_s(num_tokens, now):
            bucket.take(num_tokens, now)
            had += num_tokens
            assert bucket.wait_s(1, now) >= 0
    # the last one may be larger than the burst, and be a debt
    assert had <= 100 + 10 * latest + 1e-6 + max((num for _, num in steps), default=0)
