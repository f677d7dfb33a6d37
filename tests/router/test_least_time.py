"""What a first token takes at least, and when that is not known well enough."""

from dataclasses import replace

import numpy as np
import pytest

from twinpool.core.messages import Goal
from twinpool.router.demand import Demand
from twinpool.router.estimate import LatencyModel, LinearForm
from twinpool.router.least_time import SURE_SHARE, least_ttft_s

SLOW = LatencyModel(LinearForm(prefill_a_s=0.0, prefill_b_s=0.02, prefill_c_s=0.0))
FAST = LatencyModel(LinearForm(prefill_a_s=0.0, prefill_b_s=0.01, prefill_c_s=0.0))
DEMAND = Demand(1000, 10, Goal(1, 1))


def test_it_is_the_prefill_on_the_fastest_kind() -> None:
    found = least_ttft_s(DEMAND, ("slow", "fast"), {"slow": SLOW, "fast": FAST}, knows_caches=True)
    assert found == pytest.approx(SURE_SHARE * 10)


def test_the_longest_cached_prefix_is_free() -> None:
    demand = replace(DEMAND, cached_tokens=np.array([0, 900]))
    assert least_ttft_s(demand, ("fast",), {"fast": FAST}, knows_caches=True) == pytest.approx(SURE_SHARE)


def test_where_nobody_knows_the_caches_they_may_have_all() -> None:
    assert least_ttft_s(DEMAND, ("fast",), {"fast": FAST}, knows_caches=False) == pytest.approx(SURE_SHARE * 0.01)


@pytest.mark.parametrize(
    ("demand", "kinds"), [(DEMAND, ("fast", "new")), (DEMAND, ()), (replace(DEMAND, parked_on="p"), ("fast",))]
)
def test_it_is_nothing_where_nothing_is_sure(demand: Demand, kinds: tuple[str, ...]) -> None:
    assert least_ttft_s(demand, kinds, {"fast": FAST}, knows_caches=True) == 0
