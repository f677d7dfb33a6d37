"""The search for efficiencies."""

import numpy as np
import pytest

from twinpool.router.hardware import GPUS
from twinpool.router.latency_fit import StepRows
from twinpool.router.roofline import Efficiency, ModelSize, roofline_form
from twinpool.router.roofline_fit import MeasuredWorker, fit_efficiency

SIZE = ModelSize(32, 4096, 32, 8, 128, 14_336, 128_256)
TRUE = Efficiency(0.5, 0.3, 0.7, 0.8, 0.5, 0.6, 5e-5, 1e-5, 1e-5)
GRID = np.array(
    [
        *[(n, float(n * n), 0, 0) for n in (32, 128, 512, 2048, 8192)],
        *[(0, 0, batch * context, batch) for batch in (1, 16, 64) for context in (100, 4000)],
    ]
).T


def measured(tensor_parallel: int) -> MeasuredWorker:
    form = roofline_form(SIZE, GPUS["H100-SXM"], tensor_parallel, 1, TRUE)
    return MeasuredWorker(
        SIZE, GPUS["H100-SXM"], tensor_parallel, StepRows(GRID[0], GRID[1], GRID[2], GRID[3], form.seconds(*GRID))
    )


def test_rows_of_a_roofline_are_predicted_by_the_one_found() -> None:
    workers = [measured(tp) for tp in (1, 4)]
    found = fit_efficiency(workers)
    for worker in workers:
        form = roofline_form(SIZE, worker.gpu, worker.tensor_parallel, 1, found)
        np.testing.assert_allclose(form.seconds(*GRID), worker.rows.seconds, rtol=0.1)


def test_no_share_passes_all_of_a_rate_and_the_search_always_ends_the_same() -> None:
    fast = measured(1)
    rows = StepRows(GRID[0], GRID[1], GRID[2], GRID[3], fast.rows.seconds / 100)
    worker = MeasuredWorker(SIZE, fast.gpu, 1, rows)
    found = fit_efficiency([worker])
    assert found == fit_efficiency([worker])
    assert max(found.compute, found.attention, found.weights, found.kv, found.peers, found.overlap) <= 1
    assert found.compute == pytest.approx(1.0)
