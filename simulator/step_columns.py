"""Engine steps gathered into columns, so that what is made of them is made of thousands at once.

Knows no sum and no unit but those of observer.Steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.simulator.observer import Steps

FLUSH_AT = 8192


@dataclass(frozen=True, slots=True, eq=False)
class StepColumns:
    """M entries of observer.Steps, as arrays [M] in their order."""

    worker: NDArray[np.int64]
    started_s: NDArray[np.float64]
    ended_s: NDArray[np.float64]
    num_steps: NDArray[np.float64]
    prefill_tokens: NDArray[np.int64]
    batch: NDArray[np.int64]
    held_blocks: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.worker)

    @property
    def activity(self) -> NDArray[np.int64]:
        """[M] places in `ACTIVITIES`: what each step did."""
        return np.where(self.prefill_tokens > 0, np.where(self.batch > 0, 2, 0), 1)


ACTIVITIES = ("prefill", "decode", "mixed")  # chunks of prompts, sequences that decode, both


def columns_of(steps: Sequence[Steps]) -> StepColumns:
    """Columns of what an observer was told."""
    table = np.array(steps, dtype=np.float64).reshape(-1, len(Steps._fields))
    named = dict(zip(Steps._fields, table.T, strict=True))
    return StepColumns(
        worker=named["worker"].astype(np.int64),
        started_s=named["started_s"],
        ended_s=named["ended_s"],
        num_steps=named["num_steps"],
        prefill_tokens=named["prefill_tokens"].astype(np.int64),
        batch=named["batch"].astype(np.int64),
        held_blocks=named["held_blocks"],
    )


def clipped(columns: StepColumns, start_s: float, end_s: float) -> StepColumns:
    """The part of the steps that lies in a window; of an entry that is cut, the share of its ``num_steps`` is left."""
    started_s = np.maximum(columns.started_s, start_s)
    ended_s = np.minimum(columns.ended_s, end_s)
    before_s = columns.ended_s - columns.started_s
    share = np.divide(ended_s - started_s, before_s, out=np.ones_like(before_s), where=before_s > 0)
    kept = (ended_s > started_s) | ((before_s == 0) & (ended_s >= started_s))
    return StepColumns(
        worker=columns.worker[kept],
        started_s=started_s[kept],
        ended_s=ended_s[kept],
        num_steps=(columns.num_steps * share)[kept],
        prefill_tokens=columns.prefill_tokens[kept],
        batch=columns.batch[kept],
        held_blocks=columns.held_blocks[kept],
    )
