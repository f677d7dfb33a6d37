"""A modelled prefill for `twinpool bench transfer`: produces the KV of layer groups at a rate, on a thread of its own.

The KV lies in the pool already; only the time is made up. Knows no link.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SAMPLE_UNITS = 40
MATRIX = 192  # rows and columns of one unit of computing: about 0.2 ms of a core


@dataclass(frozen=True, slots=True)
class Prefill:
    """What the engine's thread does for each group: so many units of work, or wait so many seconds for a device."""

    seconds: Sequence[float]  # of each group
    unit_s: float | None  # of computing; None: it waits

    def run(self, on_group: Callable[[int], object]) -> None:
        """Produce group after group, and tell of each. Takes the sum of ``seconds``, and what it is held up."""
        for number, seconds in enumerate(self.seconds):
            if self.unit_s is None:
                time.sleep(seconds)
            else:
                _compute(max(1, round(seconds / self.unit_s)))
            on_group(number)


def measure_unit_s() -> float:
    """How long this core takes for one unit of computing, when nothing disturbs it."""
    _compute(SAMPLE_UNITS)
    started_s = time.monotonic()
    _compute(SAMPLE_UNITS)
    return (time.monotonic() - started_s) / SAMPLE_UNITS


def _compute(units: int) -> None:
    import torch

    left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    out = torch.empty(MATRIX, MATRIX)
    for _ in range(units):
        torch.mm(left, right, out=out)


def start_thread(work: Callable[[], object]) -> None:
    """Run ``work`` beside the caller, who hears of its end by what ``work`` does last."""
    threading.Thread(target=work, name="engine", daemon=True).start()
