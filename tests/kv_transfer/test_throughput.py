"""A rate is of busy time only, forgets slowly, and is none before anything was measured."""

import pytest

from twinpool.kv_transfer.throughput import HALF_LIFE_S, Throughput


def test_nothing_measured_is_no_rate():
    rate = Throughput()
    assert rate.bytes_per_s(0.0) is None
    rate.add(100, 1.0, 1.0)  # it took no time
    assert rate.bytes_per_s(0.0) is None


def test_pauses_do_not_count_and_shared_time_counts_once():
    rate = Throughput()
    rate.add(100, 0.0, 0.1)
    rate.add(100, 50.0, 50.1)
    assert rate.bytes_per_s(0.0) == pytest.approx(1000, rel=0.02)
    both = Throughput()
    both.add(100, 0.0, 0.1)
    both.add(100, 0.0, 0.1)
    assert both.bytes_per_s(0.0) == pytest.approx(2000)


def test_what_was_measured_a_half_life_ago_counts_half():
    rate = Throughput()
    rate.add(3000, 0.0, 1.0)
    rate.add(int(1000 * HALF_LIFE_S), 1.0, 1.0 + HALF_LIFE_S)
    assert rate.bytes_per_s(0.0) == pytest.approx((1500 + 1000 * HALF_LIFE_S) / (0.5 + HALF_LIFE_S))


def test_a_rate_that_is_too_old_is_none():
    rate = Throughput()
    rate.add(100, 5.0, 6.0)
    assert rate.bytes_per_s(6.0) == 100
    assert rate.bytes_per_s(6.1) is None
