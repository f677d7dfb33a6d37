"""What a simulated cluster drew and cost.

Knows steps, watts and prices; nothing of requests, but how many there were.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twinpool.router.power import PowerForm
from twinpool.simulator.scenario import SimulatedWorker
from twinpool.simulator.step_columns import StepColumns

Values = dict[str, object]


class Energy:
    """Watt-seconds of W workers, in steps and between them; nothing where one has no power form."""

    def __init__(self, workers: Sequence[SimulatedWorker]) -> None:
        self._forms = [worker.kind.power for worker in workers]
        self._kinds = list(dict.fromkeys(form for form in self._forms if form is not None))
        self._kind_of = np.array([-1 if form is None else self._kinds.index(form) for form in self._forms])
        self._busy_ws = 0.0
        self._watts: dict[int, float] = {}  # by kind, prompt tokens and batch (24 bits each), in one number

    @property
    def is_known(self) -> bool:
        """Whether every worker's power is."""
        return bool((self._kind_of >= 0).all())

    def add(self, columns: StepColumns) -> None:
        """Count what the workers drew in these steps."""
        if not self.is_known or not len(columns):
            return
        keys = (self._kind_of[columns.worker] << 48) | (columns.prefill_tokens << 24) | columns.batch
        unique, place = np.unique(keys, return_inverse=True)
        watts = np.array([self._step_watts(key) for key in unique.tolist()])
        self._busy_ws += float(watts[place] @ (columns.ended_s - columns.started_s))

    def _step_watts(self, key: int) -> float:
        watts = self._watts.get(key)
        if watts is None:
            form = self._kinds[key >> 48]
            watts = self._watts[key] = form.step_watts((key >> 24) % 2**24, key % 2**24)
        return watts

    def watt_hours(self, busy_s: NDArray[np.float64], duration_s: float) -> float | None:
        """Of all workers, idle time included: they are up for ``duration_s`` and in steps for ``busy_s`` [W] of it."""
        if not self.is_known:
            return None
        idle_w = np.array([_form(form).step_watts(0, 0) for form in self._forms])
        idle_ws = float(idle_w @ np.maximum(0.0, duration_s - busy_s))
        return (self._busy_ws + idle_ws) / 3600


def _form(form: PowerForm | None) -> PowerForm:
    assert form is not None, "asked only where all are known"
    return form


def energy_values(watt_hours: float | None, duration_s: float, completed: int) -> Values | None:
    """Energy of the whole cluster, and of one request; None where it is not known."""
    if watt_hours is None:
        return None
    return {
        "wh": watt_hours,
        "wh_per_request": watt_hours / completed if completed else None,
        "mean_w": watt_hours * 3600 / duration_s if duration_s else None,
    }


def cost_values(workers: Sequence[SimulatedWorker], duration_s: float, completed: int, tokens: int) -> Values | None:
    """What the cluster costs, whether it is busy or not; None where a worker has no price. In dollars.

    Args:
        completed: requests, in ``duration_s``.
        tokens: of their answers; prompts are in the price.
    """
    if not all(worker.kind.price_per_hour > 0 for worker in workers):
        return None
    per_hour = sum(worker.kind.price_per_hour for worker in workers)
    spent = per_hour * duration_s / 3600
    return {
        "usd_per_hour": per_hour,
        "usd_per_request": spent / completed if completed else None,
        "usd_per_million_tokens": spent / tokens * 1e6 if tokens else None,
    }
