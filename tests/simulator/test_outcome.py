"""What an outcome says of its times and goals."""

import pytest

from twinpool.simulator.outcome import Ending

from .builders import outcome


def test_times_are_counted_as_users_count_them():
    ended = outcome(arrival_s=1.0, first_token_s=1.5, end_s=2.5, num_tokens=11)
    assert (ended.ttft_s, ended.tpot_s, ended.e2e_s) == pytest.approx((0.5, 0.1, 1.5))


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"first_token_s": 1.0, "end_s": 2.0}, True),  # both bounds are met when they are reached
        ({"first_token_s": 1.01, "end_s": 1.5}, False),
        ({"end_s": 1.52}, False),
        ({"num_tokens": 1, "end_s": 0.5}, True),  # there is no gap
        ({"ending": Ending.FAILED}, False),
        ({"ending": Ending.CUT}, False),
        ({"ending": Ending.REJECTED, "first_token_s": None}, False),
    ],
)
def test_goals_are_met_by_completed_requests_within_both_bounds(changes: dict[str, object], met: bool):
    assert outcome(**changes).met is met


def test_what_did_not_happen_has_no_time():
    never = outcome(ending=Ending.REJECTED, first_token_s=None)
    assert (never.ttft_s, never.tpot_s) == (None, None)
    assert outcome(num_tokens=1).tpot_s is None
    assert outcome(ending=Ending.CUT).tpot_s is None
