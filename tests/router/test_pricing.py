"""Predictions move the way the cluster does."""

from dataclasses import replace

import numpy as np
import pytest

from twinpool.core.messages import Goal, Role
from twinpool.router.demand import Demand
from twinpool.router.estimate import LatencyModel, LinearForm, LinkCost
from twinpool.router.pricing import Prices, price, violation
from twinpool.router.view_table import ViewTable
from twinpool.router.views import WorkerLoad, WorkerView

DEMAND = Demand(num_tokens=100, max_new_tokens=11, goal=Goal(10.0, 1.0))
LATENCY = LatencyModel(
    LinearForm(1.0, 0.01, 0.0, 0.5, 0.0, 0.1), LinkCost(0.25, 1000.0), kv_token_bytes=10, chunk_tokens=50
)
SLOW = replace(LATENCY, steps=LinearForm(2.0, 0.02, 0.0, 1.0, 0.0, 0.2), link=LinkCost(0.25, 100.0))


def prices_on(load: WorkerLoad, demand: Demand = DEMAND, latency: LatencyModel = LATENCY) -> Prices:
    table = ViewTable()
    table.join(WorkerView("w", "a", Role.MIXED, 1000, 16, load=load), 0.0)
    return price(demand, table.snapshot(0.0), latency)


def test_an_idle_worker_costs_the_steps_of_the_prefill_alone() -> None:
    prices = prices_on(WorkerLoad())
    assert prices.ttft_s[0] == prices.prefill_cost_s[0] == pytest.approx(2 * 1.0 + 0.01 * 100)  # two chunks
    assert prices.tpot_s[0] == pytest.approx(0.5 + 0.1)


def test_ttft_counts_age_and_the_prompts_ahead() -> None:
    prices = prices_on(WorkerLoad(waiting_prefills=2, waiting_prefill_tokens=200), replace(DEMAND, age_s=3.0))
    assert prices.ttft_s[0] == pytest.approx(3.0 + 6 * 1.0 + 0.01 * 300)


def test_attention_is_paid_once_for_a_prompt_however_it_is_cut() -> None:
    square = replace(LATENCY, steps=LinearForm(0.0, 0.0, 0.001, 0.0, 0.0, 0.0))
    assert prices_on(WorkerLoad(), latency=square).ttft_s[0] == pytest.approx(0.001 * 100**2)


def test_running_sequences_slow_the_prefill_and_pay_for_it() -> None:
    prices = prices_on(WorkerLoad(running=4))
    assert prices.ttft_s[0] == pytest.approx(2 * (1.0 + 0.4) + 0.01 * 100)  # the larger fixed term, twice
    assert prices.prefill_cost_s[0] == pytest.approx(prices.ttft_s[0] + 4 * 3.0)


def test_tpot_counts_all_who_will_have_joined_and_prefills_in_the_way() -> None:
    prices = prices_on(WorkerLoad(running=4, reservations=2, waiting_prefills=1, waiting_prefill_tokens=100))
    assert prices.tpot_s[0] == pytest.approx(0.5 + 0.1 * 7 + 3.0 / 10)


@pytest.mark.parametrize(
    ("bytes_per_s", "exposed_s"),
    [(1000.0, 0.25 + 0.5), (100.0, 0.25 + 10.0 - 3.0)],  # the last chunk; what a slow link falls behind by
)
def test_only_the_exposed_part_of_a_transfer_counts(bytes_per_s: float, exposed_s: float) -> None:
    prices = prices_on(WorkerLoad(), latency=replace(LATENCY, link=LinkCost(0.25, bytes_per_s)))
    assert prices.exposed_s[0] == pytest.approx(exposed_s)
    assert prices.exposed_tpot_s[0] == pytest.approx(exposed_s / 10)


def test_every_worker_is_priced_by_the_form_of_its_kind() -> None:
    table = ViewTable()
    kinds = {"a": "slow", "b": "unheard of", "c": "slow", "d": ""}
    loads = {name: WorkerLoad(running=index, context_tokens=100 * index) for index, name in enumerate(kinds)}
    for name, kind in kinds.items():
        table.join(WorkerView(name, "i", Role.MIXED, 1000, 16, load=loads[name], kind=kind), 0.0)
    prices = price(DEMAND, table.snapshot(0.0), LATENCY, {"slow": SLOW})
    for index, (name, kind) in enumerate(kinds.items()):
        alone = prices_on(loads[name], latency=SLOW if kind == "slow" else LATENCY)
        for field in ("ttft_s", "prefill_cost_s", "tpot_s", "exposed_s", "exposed_tpot_s"):
            assert getattr(prices, field)[index] == getattr(alone, field)[0]


@pytest.mark.parametrize("cached_tokens", [0, 16, 48, 96])
def test_what_is_cached_is_not_computed_but_attended_to_and_sent(cached_tokens: int) -> None:
    form = LinearForm(1.0, 0.01, 0.001, 0.5, 0.0, 0.1)
    latency = replace(LATENCY, steps=form, link=LinkCost(0.25, 100.0))
    load = WorkerLoad(running=2, context_tokens=50, waiting_prefills=1, waiting_prefill_tokens=70)
    prices = prices_on(load, replace(DEMAND, cached_tokens=np.array([cached_tokens])), latency)
    num_new = 100 - cached_tokens
    own_s = -(-num_new // 50) * 1.0 + 0.01 * num_new + 0.001 * (100**2 - cached_tokens**2)
    num_steps = -(-(70 + num_new) // 50)
    queue_s = num_steps * (1.0 + 0.2) + 0.01 * (70 + num_new) + 0.001 * (70**2 + 100**2 - cached_tokens**2)
    assert prices.ttft_s[0] == pytest.approx(queue_s)
    assert prices.prefill_cost_s[0] == pytest.approx(queue_s + 2 * own_s)
    assert prices.exposed_s[0] == pytest.approx(max(0.25 + 5.0, 0.25 + 10.0 - own_s))
    assert prices.tpot_s[0] == prices_on(load, DEMAND, latency).tpot_s[0]


def test_nothing_cached_anywhere_is_priced_as_if_nobody_knew() -> None:
    table = ViewTable()
    for name, kind in {"a": "slow", "b": "", "c": "slow"}.items():
        table.join(WorkerView(name, "i", Role.MIXED, 1000, 16, kind=kind), 0.0)
    known = replace(DEMAND, cached_tokens=np.zeros(3, np.int64))
    prices = [price(demand, table.snapshot(0.0), LATENCY, {"slow": SLOW}) for demand in (DEMAND, known)]
    for field in ("ttft_s", "prefill_cost_s", "tpot_s", "exposed_s", "exposed_tpot_s"):
        assert getattr(prices[0], field).tolist() == pytest.approx(getattr(prices[1], field).tolist())


def test_each_worker_is_priced_by_what_it_has_cached_whatever_its_kind() -> None:
    table = ViewTable()
    kinds, cached = {"a": "slow", "b": "", "c": "slow"}, (0, 32, 64)
    for name, kind in kinds.items():
        table.join(WorkerView(name, "i", Role.MIXED, 1000, 16, kind=kind), 0.0)
    prices = price(replace(DEMAND, cached_tokens=np.array(cached)), table.snapshot(0.0), LATENCY, {"slow": SLOW})
    for index, kind in enumerate(kinds.values()):
        demand = replace(DEMAND, cached_tokens=np.array([cached[index]]))
        alone = prices_on(WorkerLoad(), demand, SLOW if kind == "slow" else LATENCY)
        assert prices.ttft_s[index] == alone.ttft_s[0]


def test_no_workers_have_no_prices() -> None:
    assert price(DEMAND, ViewTable().snapshot(0.0), LATENCY).ttft_s.shape == (0,)


def test_a_violation_is_relative_to_the_goal() -> None:
    took = np.array([3.0])
    assert violation(took, 3.0)[0] == pytest.approx(0.0)
    assert violation(took, 1.5)[0] == pytest.approx(1.0)
