"""Predictions move the way the cluster does."""

from dataclasses import replace

import pytest

from twinpool.core.messages import Goal, Role
from twinpool.router.demand import Demand
from twinpool.router.estimate import LatencyModel, LinkCost, PrefillCost, StepCost
from twinpool.router.pricing import Prices, price, violation
from twinpool.router.views import ViewTable, WorkerLoad, WorkerView

DEMAND = Demand(num_tokens=100, max_new_tokens=11, goal=Goal(10.0, 1.0))
LATENCY = LatencyModel(
    PrefillCost(1.0, 0.01, 0.0), StepCost(0.5, 0.0, 0.1), LinkCost(0.25, 1000.0), kv_token_bytes=10, chunk_tokens=50
)


def prices_on(load: WorkerLoad, demand: Demand = DEMAND, latency: LatencyModel = LATENCY) -> Prices:
    table = ViewTable()
    table.join(WorkerView("w", "a", Role.MIXED, 1000, 16, load=load), 0.0)
    return price(demand, table.snapshot(0.0), latency)


def test_an_idle_worker_costs_the_prefill_alone() -> None:
    prices = prices_on(WorkerLoad())
    assert prices.ttft_s[0] == prices.prefill_cost_s[0] == pytest.approx(1.0 + 0.01 * 100)
    assert prices.tpot_s[0] == pytest.approx(0.5 + 0.1)


def test_ttft_counts_age_and_the_prompts_ahead() -> None:
    prices = prices_on(WorkerLoad(waiting_prefills=2, waiting_prefill_tokens=200), replace(DEMAND, age_s=3.0))
    assert prices.ttft_s[0] == pytest.approx(3.0 + 1.0 + 0.01 * 300)


def test_running_sequences_slow_the_prefill_and_pay_for_it() -> None:
    prices = prices_on(WorkerLoad(running=4))
    assert prices.ttft_s[0] == pytest.approx(2.0 + 2 * (0.5 + 0.4))  # two chunks, a step beside each
    assert prices.prefill_cost_s[0] == pytest.approx(prices.ttft_s[0] + 4 * 2.0)


def test_tpot_counts_all_who_will_have_joined_and_prefills_in_the_way() -> None:
    prices = prices_on(WorkerLoad(running=4, reservations=2, waiting_prefills=1, waiting_prefill_tokens=100))
    assert prices.tpot_s[0] == pytest.approx(0.5 + 0.1 * 7 + 2.0 / 10)


@pytest.mark.parametrize(
    ("bytes_per_s", "exposed_s"),
    [(1000.0, 0.25 + 0.5), (200.0, 0.25 + 5.0 - 2.0)],  # the last chunk; what a slow link falls behind by
)
def test_only_the_exposed_part_of_a_transfer_counts(bytes_per_s: float, exposed_s: float) -> None:
    prices = prices_on(WorkerLoad(), latency=replace(LATENCY, link=LinkCost(0.25, bytes_per_s)))
    assert prices.exposed_s == pytest.approx(exposed_s)
    assert prices.exposed_tpot_s == pytest.approx(exposed_s / 10)


def test_a_violation_is_relative_to_the_goal() -> None:
    table = prices_on(WorkerLoad()).ttft_s
    assert violation(table, 2.0)[0] == pytest.approx(0.0)
    assert violation(table, 1.0)[0] == pytest.approx(1.0)
