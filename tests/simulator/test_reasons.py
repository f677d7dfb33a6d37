"""Reasons are counted by their words; of their numbers the range is kept."""

from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.reasons import MAX_REASONS, OTHERS, Reasons


def counted(*whys: str) -> Reasons:
    reasons = Reasons()
    for why in whys:
        reasons.add(why)
    return reasons


def test_numbers_become_a_range_and_equal_ones_stay():
    reasons = counted("after 3 of 5 s", "after 0.25 of 5 s", "after 12 of 5 s")
    assert reasons.most_common(9) == {"after 0.25 to 12 of 5 s": 3}


def test_numbers_in_names_tell_reasons_apart():
    whys = ("decode-0 is gone", "decode-1 is gone", "tenant t1 is over", "tenant t2 is over", "gpu2x lost")
    assert counted(*whys).most_common(9) == dict.fromkeys(whys, 1)


def test_a_number_may_end_a_sentence_or_be_large():
    assert counted("wait 1.", "wait 2e+06.").most_common(9) == {"wait 1 to 2e+06.": 2}


def test_the_most_frequent_come_first_and_the_rest_are_left_out():
    assert list(counted("a", "b", "b", "c", "c", "c").most_common(2)) == ["c", "b"]


def test_reasons_beyond_a_hundred_are_others():
    reasons = counted(*(f"reason-{number}" for number in range(MAX_REASONS + 7)))
    assert reasons.most_common(1) == {OTHERS: 7}


@given(st.lists(st.sampled_from(["a 1", "a 2", "b", "c 1 2", "c 3 0"])), st.integers(0, 10))
def test_merged_counts_are_those_of_all(whys: list[str], at: int):
    merged = counted(*whys[:at])
    merged.merge(counted(*whys[at:]))
    assert merged.most_common(9) == counted(*whys).most_common(9)
