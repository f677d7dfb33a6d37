"""Busy time and blocks held, worked out by hand."""

import pytest

from twinpool.simulator.step_columns import clipped, columns_of
from twinpool.simulator.usage import Usage

from .builders import scenario, steps


def test_time_is_counted_by_what_steps_did():
    usage = Usage(scenario().workers)
    usage.add(columns_of([steps(0, 0, 1, prefill_tokens=64, num_prompts=1), steps(0, 1, 3, prefill_tokens=9, batch=2)]))
    usage.add(columns_of([steps(1, 2, 6, num_steps=8, batch=3)]))
    usage.close(10.0)
    prefill, decode = usage.worker_values(10.0)
    assert [prefill[name] for name in ("prefill", "decode", "mixed", "busy", "steps")] == pytest.approx(
        [0.1, 0, 0.2, 0.3, 2]
    )
    assert [decode[name] for name in ("prefill", "decode", "mixed", "busy", "steps")] == pytest.approx(
        [0, 0.4, 0, 0.4, 8]
    )
    assert usage.busy_s.tolist() == [3, 4]


def test_blocks_are_held_from_a_step_to_the_next_and_to_the_end():
    usage = Usage(scenario().workers)
    usage.add(columns_of([steps(0, 1, 2, batch=1, held_blocks=10), steps(1, 1, 2, batch=1, held_blocks=50)]))
    usage.add(columns_of([steps(0, 5, 6, batch=1, held_blocks=30)]))
    usage.close(10.0)
    prefill, decode = usage.worker_values(10.0)
    assert prefill["kv_used_mean"] == pytest.approx((4 * 10 + 5 * 30) / 10 / 100)
    assert prefill["kv_used_peak"] == pytest.approx(0.3)
    assert decode["kv_used_mean"] == pytest.approx(9 * 50 / 10 / 100)


def test_a_pool_is_the_mean_of_its_workers():
    usage = Usage(scenario().workers * 2)
    usage.add(columns_of([steps(0, 0, 4, prefill_tokens=1, held_blocks=20), steps(2, 0, 2, prefill_tokens=1)]))
    usage.close(4.0)
    pools = usage.pool_values(4.0)
    assert (pools["prefill"]["workers"], pools["prefill"]["busy"]) == (2, pytest.approx(0.75))
    assert pools["prefill"]["kv_used_mean"] == pytest.approx(0.1)
    assert pools["prefill"]["kv_used_peak"] == pytest.approx(0.2)
    assert pools["decode"]["busy"] == 0


def test_over_time_each_bucket_has_the_share_of_its_own_time():
    usage = Usage(scenario().workers)
    usage.add(columns_of([steps(0, 0.05, 0.2, prefill_tokens=1, held_blocks=100)]))
    usage.close(0.3)
    told = usage.over_time_values()
    assert told["bucket_s"] == pytest.approx(0.1)
    assert told["pools"]["prefill"]["prefill"] == pytest.approx([0.5, 1.0, 0.0])
    assert told["pools"]["prefill"]["kv_used"] == pytest.approx([0.5, 1.0, 1.0])


def test_clipping_keeps_the_part_of_an_entry_that_lies_inside():
    columns = clipped(columns_of([steps(0, 0, 4, num_steps=8, batch=2), steps(1, 5, 6)]), 3.0, 5.0)
    assert (columns.started_s.tolist(), columns.ended_s.tolist()) == ([3.0], [4.0])
    assert columns.num_steps.tolist() == [2.0]
