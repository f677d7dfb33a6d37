"""Energy and cost, worked out by hand."""

import numpy as np
import pytest

from twinpool.simulator.energy import Energy, cost_values, energy_values
from twinpool.simulator.step_columns import columns_of

from .builders import POWER, kind, scenario, steps


def test_energy_is_watts_of_each_step_and_idle_watts_between():
    energy = Energy(scenario(kind=kind(power=POWER)).workers)
    energy.add(columns_of([steps(0, 0, 2, prefill_tokens=512), steps(1, 0, 4, num_steps=9, batch=10)]))
    watt_seconds = 2 * 700 + 8 * 100 + 4 * 400 + 6 * 100
    assert energy.watt_hours(np.array([2.0, 4.0]), 10.0) == pytest.approx(watt_seconds / 3600)


def test_energy_is_unknown_where_one_workers_power_is():
    energy = Energy(scenario().workers)
    energy.add(columns_of([steps()]))
    assert energy.watt_hours(np.zeros(2), 10.0) is None
    assert energy_values(None, 10.0, 1) is None


def test_energy_of_one_request_and_mean_power():
    assert energy_values(2.0, 3600.0, 4) == {"wh": 2.0, "wh_per_request": 0.5, "mean_w": 2.0}
    assert energy_values(2.0, 3600.0, 0)["wh_per_request"] is None


def test_cost_counts_idle_workers_too():
    workers = scenario(kind=kind(price_per_hour=3.0)).workers
    assert cost_values(workers, 1800.0, 6, 1500) == {
        "usd_per_hour": 6.0,
        "usd_per_request": 0.5,
        "usd_per_million_tokens": 2000.0,
    }
    assert cost_values(scenario().workers, 1800.0, 6, 1500) is None
