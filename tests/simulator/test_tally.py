"""Counts and percentiles of outcomes."""

import pytest

from twinpool.simulator.outcome import Ending
from twinpool.simulator.reasons import MAX_REASONS, OTHERS
from twinpool.simulator.tally import TOLD_REASONS, Tally

from .builders import outcome


def tally_of(*outcomes):
    tally = Tally()
    for one in outcomes:
        tally.add(one)
    return tally


def test_attainment_is_a_share_of_all_that_was_offered():
    tally = tally_of(
        outcome(),
        outcome(first_token_s=1.2, end_s=2.0),  # late
        outcome(ending=Ending.REJECTED, first_token_s=None, why="full"),
        outcome(ending=Ending.CUT, why="the run ended"),
    )
    values = tally.values(10.0)
    assert (values["requests"], values["completed"], values["rejected"], values["cut"], values["failed"]) == (
        4,
        2,
        1,
        1,
        0,
    )
    assert (values["met"], values["slo_attainment"], values["goodput_rps"]) == (1, 0.25, 0.1)
    assert values["reasons"] == {"full": 1, "the run ended": 1}


def test_latencies_are_those_of_completed_requests():
    tally = tally_of(outcome(), outcome(ending=Ending.FAILED, first_token_s=99.0, end_s=100.0, why="x"))
    assert tally.values(1.0)["ttft_s"]["p50"] == pytest.approx(0.5, rel=0.005)
    assert tally.values(1.0)["tpot_s"]["p99"] == pytest.approx(0.1, rel=0.005)
    assert tally.sketch("e2e_s").count == 1


def test_a_request_of_one_token_has_no_tpot():
    tally = tally_of(outcome(num_tokens=1, end_s=0.5))
    assert tally.values(1.0)["tpot_s"] == {"p50": None, "p90": None, "p99": None}
    assert tally.first_gaps.count == 0


def test_the_gap_after_the_first_token_is_the_handoff_and_a_step():
    tally = tally_of(outcome(handoff_s=0.3))  # 1 s for ten gaps, 0.3 of it handing over
    assert tally.first_gaps.sum == pytest.approx(0.3 + 0.07)


def test_rates_and_phases():
    tally = tally_of(outcome(queued_s=0.2, attempts=2), outcome(queued_s=0.4, cached_tokens=50))
    values = tally.values(2.0)
    assert (values["requests_per_s"], values["tokens_per_s"], values["prompt_tokens_per_s"]) == (1.0, 11.0, 100.0)
    assert tally.phase_values()["queued_s"]["mean"] == pytest.approx(0.3)
    assert (tally.attempts, tally.cached_tokens) == ({1: 1, 2: 1}, 50)


def test_reasons_are_bounded():
    tally = tally_of(*(outcome(ending=Ending.FAILED, why=f"reason-{i}") for i in range(MAX_REASONS + 50)))
    told = tally.values(1.0)["reasons"]
    assert len(told) == TOLD_REASONS
    assert told[OTHERS] == 50


def test_reasons_that_differ_in_a_number_are_one():
    whys = [f"overloaded: the queue is full; retry after {after} s" for after in ("0.5", "12", "3")]
    tally = tally_of(*(outcome(ending=Ending.REJECTED, why=why) for why in whys))
    assert tally.values(1.0)["reasons"] == {"overloaded: the queue is full; retry after 0.5 to 12 s": 3}


def test_merged_tallies_are_the_tally_of_all():
    ones = [outcome(), outcome(end_s=2.5, attempts=2)]
    others = [outcome(ending=Ending.FAILED, why="x"), outcome(first_token_s=0.7, cached_tokens=9)]
    merged, both = tally_of(*ones).merge(tally_of(*others)), tally_of(*ones, *others)
    assert merged.values(2.0) == both.values(2.0)
    assert merged.phase_values() == both.phase_values()
    assert (merged.last_end_s, merged.cached_tokens, merged.attempts) == (2.5, 9, both.attempts)


def test_a_run_of_no_time_has_no_rates():
    assert Tally().values(0.0)["goodput_rps"] is None
    assert Tally().values(0.0)["slo_attainment"] is None
