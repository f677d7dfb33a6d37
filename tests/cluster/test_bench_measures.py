"""What is made of outcomes: percentiles, attainment and rates, against their definitions spelt out."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.cluster.bench.compare import ratios
from twinpool.cluster.bench.measures import Ending, Outcome, percentiles, ratio, summarise
from twinpool.core.messages import Goal

GOAL = Goal(1.0, 0.1)


def outcome(ending: Ending = Ending.COMPLETED, times: tuple[float, ...] = (1.5, 1.6, 1.8), **more: Any) -> Outcome:
    values: dict[str, Any] = {"due_s": 1.0, "sent_s": 1.0, "num_tokens": len(times), "ended_s": 2.0}
    return Outcome(ending, 10, token_times_s=times, **(values | more))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_lie_between_the_sorted_neighbours_of_their_rank(values: list[float]) -> None:
    ordered = sorted(values)
    found = percentiles(values)
    for rank in (50, 90, 99):
        place = rank / 100 * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        expected = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
        assert found[f"p{rank}"] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_percentiles_of_nothing_are_missing_and_missing_values_are_left_out() -> None:
    assert percentiles([]) == percentiles([None]) == {"p50": None, "p90": None, "p99": None}
    assert percentiles([None, 3.0, None]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0}


def test_times_of_one_request_follow_their_definitions() -> None:
    one = outcome(times=(1.5, 1.6, 1.8), sent_s=1.25, num_tokens=5)  # two messages brought more than one token
    assert one.ttft_s == pytest.approx(0.25)
    assert one.tpot_s == pytest.approx(0.3 / 4)
    assert one.e2e_s == pytest.approx(0.55)
    assert one.gaps_s == pytest.approx((0.1, 0.2))
    assert one.send_lag_s == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("met", "case"),
    [
        (True, outcome(times=(2.0, 2.1, 2.2))),  # both at their bounds
        (False, outcome(times=(2.001, 2.1, 2.2))),
        (False, outcome(times=(1.1, 1.3, 1.4))),
        (True, outcome(times=(1.5,))),  # no later token, so TPOT is met
        (False, outcome(times=(2.5,))),
        (False, outcome(times=())),
        (False, outcome(Ending.REJECTED, times=())),
        (False, outcome(Ending.FAILED)),
        (False, outcome(Ending.CUT)),
    ],
)
def test_a_goal_is_met_by_completed_requests_within_both_bounds(met: bool, case: Outcome) -> None:
    assert case.meets(Goal(1.0, 0.1 + 1e-9)) is met


def test_every_offered_request_counts_in_attainment_however_it_ended() -> None:
    endings = [Ending.COMPLETED] * 3 + [Ending.REJECTED] * 2 + [Ending.FAILED, Ending.CUT]
    outcomes = [outcome(ending, times=(1.5, 1.55)) for ending in endings]
    outcomes.append(outcome(times=(5.0, 5.1)))  # completed, but late
    row = summarise(outcomes, GOAL, wall_s=4.0, num_workers=2)
    assert (row["requests"], row["completed"], row["rejected"], row["failed"], row["cut"]) == (8, 4, 2, 1, 1)
    assert row["met"] == 3
    assert row["slo_attainment"] == 3 / 8
    assert (row["goodput_rps"], row["goodput_rps_per_gpu"]) == (3 / 4, 3 / 8)
    assert row["requests_per_s"] == 1.0
    assert row["tokens_per_s"] == 16 / 4


@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_a_row_agrees_with_counting_by_hand(rng: random.Random, count: int) -> None:
    outcomes = []
    for _ in range(count):
        times = sorted(1 + rng.random() * 2 for _ in range(rng.randrange(4)))
        ending = rng.choice(list(Ending)) if times else rng.choice([Ending.REJECTED, Ending.FAILED, Ending.CUT])
        outcomes.append(outcome(ending, tuple(times)))
    row = summarise(outcomes, GOAL, 1.0, 1)
    met = 0
    for one in outcomes:
        if one.ending is Ending.COMPLETED and one.token_times_s[0] - 1.0 <= 1.0:
            gaps = [b - a for a, b in zip(one.token_times_s, one.token_times_s[1:], strict=False)]
            met += not gaps or sum(gaps) / len(gaps) <= 0.1
    assert row["met"] == met
    assert row["completed"] + row["rejected"] + row["failed"] + row["cut"] == row["requests"] == count
    json.dumps(row, allow_nan=False)


def test_a_ratio_to_nothing_is_missing() -> None:
    assert (ratio(3.0, 2.0), ratio(None, 2.0), ratio(3.0, None), ratio(3.0, 0.0)) == (1.5, None, None, None)


def test_modes_are_compared_number_by_number() -> None:
    fast = summarise([outcome(times=(1.2, 1.25))], GOAL, 1.0, 2)
    slow = summarise([outcome(times=(1.4, 1.475)), outcome(Ending.REJECTED, ())], GOAL, 2.0, 2)
    found = ratios(fast, slow)
    assert found["slo_attainment"] == 2.0
    assert found["goodput_rps"] == 2.0
    assert found["ttft_s"]["p99"] == pytest.approx(0.5)
    assert found["tpot_s"]["p50"] == pytest.approx(2 / 3)
