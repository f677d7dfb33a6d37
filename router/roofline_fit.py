"""Finds the efficiencies with which rooflines come closest to measured steps.

Knows rows and forms; the search is a plain one and always ends the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from twinpool.router.hardware import Gpu
from twinpool.router.latency_fit import StepRows
from twinpool.router.roofline import Efficiency, ModelSize, roofline_form

SHARES = ("compute", "attention", "weights", "kv", "peers", "overlap")  # at most 1
START = Efficiency(0.7, 0.2, 0.8, 0.6, 0.6, 0.5, 1e-4, 2e-5, 4e-5)
LEAST_S = 1e-7  # of what is counted in seconds
START_FACTOR, LAST_FACTOR, NUM_SWEEPS = 2.0, 1.002, 4


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredWorker:
    """Steps of one model on one shape of worker."""

    size: ModelSize
    gpu: Gpu
    tensor_parallel: int
    rows: StepRows


def fit_efficiency(workers: Sequence[MeasuredWorker], start: Efficiency = START) -> Efficiency:
    """The efficiency of least mean ``log(predicted / measured) ** 2`` over all rows, found by pattern search.

    Each number in turn is multiplied and divided by a factor while that helps; then the factor shrinks to its root; and
    all that a few times over.
    What the rows say nothing about stays as in ``start``.
    """
    best, best_miss = start, _miss(start, workers)
    for _ in range(NUM_SWEEPS):
        factor = START_FACTOR
        while factor > LAST_FACTOR:
            moved = False
            for tried in _neighbours(best, factor):
                miss = _miss(tried, workers)
                if miss < best_miss - 1e-12:
                    best, best_miss, moved = tried, miss, True
            factor = factor if moved else math.sqrt(factor)
    return best


def _neighbours(efficiency: Efficiency, factor: float) -> list[Efficiency]:
    found = []
    for item in fields(Efficiency):
        for scale in (factor, 1 / factor):
            value = getattr(efficiency, item.name) * scale
            value = min(1.0, value) if item.name in SHARES else max(LEAST_S, value)
            found.append(replace(efficiency, **{item.name: value}))
    return found


def _miss(efficiency: Efficiency, workers: Sequence[MeasuredWorker]) -> float:
    """Mean over rows, each worker's counting as much as another's."""
    misses = []
    for worker in workers:
        form = roofline_form(worker.size, worker.gpu, worker.tensor_parallel, 1, efficiency)
        rows = worker.rows
        predicted = form.seconds(rows.prefill_tokens, rows.prefill_squares, rows.context_tokens, rows.batch)
        misses.append(float((np.log(predicted / rows.seconds) ** 2).mean()))
    return float(np.mean(misses))
