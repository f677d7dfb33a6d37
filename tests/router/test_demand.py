"""A demand says of a request what workers will hold for it."""

from twinpool.core.messages import Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.router.demand import Demand


def test_a_continuation_demands_what_is_left_and_peaks_where_the_whole_does() -> None:
    first = Request("r", 0, (1, 2, 3), 3, SamplingParams(max_tokens=10), Goal(1, 1))
    later = Request("r", 1, (1, 2, 3, 7, 8), 3, SamplingParams(max_tokens=10), Goal(1, 1), age_s=4.0)
    assert Demand.of(first).peak_tokens == Demand.of(later).peak_tokens == first.peak_tokens == 12
    assert Demand.of(later).num_tokens == 5
    assert Demand.of(later).max_new_tokens == 8
    assert Demand.of(later).age_s == 4.0


def test_one_token_leaves_nothing_to_decode() -> None:
    assert not Demand(5, 1, Goal(1, 1)).decodes
    assert Demand(5, 2, Goal(1, 1)).decodes
