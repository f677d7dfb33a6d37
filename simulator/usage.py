"""What workers did with their time: busy seconds by activity and blocks held, for each and over time.

Knows steps; nothing of requests, watts or prices. Memory grows with the workers, not with the steps.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twinpool.simulator.scenario import SimulatedWorker
from twinpool.simulator.series import Series
from twinpool.simulator.step_columns import ACTIVITIES, StepColumns

Values = dict[str, object]


class Usage:
    """Totals for each of W workers, and their share of busy time in each pool over time."""

    def __init__(self, workers: Sequence[SimulatedWorker], start_s: float = 0.0) -> None:
        num = len(workers)
        self._workers = workers
        self._start_s = start_s
        self._roles = sorted({str(worker.role) for worker in workers})
        self._role_of = np.array([self._roles.index(str(worker.role)) for worker in workers], dtype=np.int64)
        self._busy_s = np.zeros((num, len(ACTIVITIES)))
        self._steps = np.zeros(num)
        self._block_s = np.zeros(num)  # blocks held, times seconds
        self._held = np.zeros(num)  # at last
        self._held_since = np.full(num, start_s)
        self._peak_blocks = np.zeros(num)
        self.over_time = Series(len(self._roles) * (len(ACTIVITIES) + 1), start_s)  # the last: block-seconds

    def add(self, columns: StepColumns) -> None:
        """Count steps; those of one worker in their order."""
        if not len(columns):
            return
        num, worker = len(self._workers), columns.worker
        took_s, activity = columns.ended_s - columns.started_s, columns.activity
        cells = worker * len(ACTIVITIES) + activity
        self._busy_s += np.bincount(cells, took_s, num * len(ACTIVITIES)).reshape(num, -1)
        self._steps += np.bincount(worker, columns.num_steps, num)
        np.maximum.at(self._peak_blocks, worker, columns.held_blocks)
        rows = self._role_of[worker] * (len(ACTIVITIES) + 1)
        self.over_time.add(rows + activity, columns.started_s, columns.ended_s)
        self._hold_blocks(columns, rows + len(ACTIVITIES))

    def _hold_blocks(self, columns: StepColumns, rows: NDArray[np.int64]) -> None:
        """What a worker held at a step it holds until the next one."""
        order = np.argsort(columns.worker, kind="stable")
        worker, at_s, held = columns.worker[order], columns.started_s[order], columns.held_blocks[order]
        is_first = np.concatenate([[True], worker[1:] != worker[:-1]])
        since_s, before = np.roll(at_s, 1), np.roll(held, 1)
        since_s[is_first], before[is_first] = self._held_since[worker[is_first]], self._held[worker[is_first]]
        self._block_s += np.bincount(worker, before * np.maximum(0.0, at_s - since_s), len(self._workers))
        self.over_time.add(rows[order], since_s, at_s, before)
        is_last = np.roll(is_first, -1)
        self._held[worker[is_last]], self._held_since[worker[is_last]] = held[is_last], at_s[is_last]

    def close(self, end_s: float) -> None:
        """Nothing follows: what is held now was held until ``end_s``."""
        left_s = np.maximum(0.0, end_s - self._held_since)
        self._block_s += self._held * left_s
        rows = self._role_of * (len(ACTIVITIES) + 1) + len(ACTIVITIES)
        self.over_time.add(rows, self._held_since, self._held_since + left_s, self._held)
        self._held_since += left_s

    def worker_values(self, duration_s: float) -> list[Values]:
        """One object for each worker: the share of its time by activity, and of its blocks that were in use."""
        return [
            {
                "id": worker.worker_id,
                "role": str(worker.role),
                "kind": worker.kind.name,
                **self._values(np.array([index]), duration_s),
            }
            for index, worker in enumerate(self._workers)
        ]

    def pool_values(self, duration_s: float) -> dict[str, Values]:
        """The same for each role: means over its workers; the peak is the fullest worker's."""
        return {
            role: {
                "workers": int((self._role_of == index).sum()),
                **self._values(np.flatnonzero(self._role_of == index), duration_s),
            }
            for index, role in enumerate(self._roles)
        }

    def _values(self, of: NDArray[np.int64], duration_s: float) -> Values:
        blocks = np.array([self._workers[index].kind.num_blocks for index in of], dtype=np.float64)
        all_s = duration_s * len(of)
        shares = [float(seconds / all_s) if all_s else 0.0 for seconds in self._busy_s[of].sum(axis=0)]
        held = float(self._block_s[of].sum() / (duration_s * blocks.sum())) if duration_s and blocks.sum() else 0.0
        return {
            "busy": sum(shares),
            **dict(zip(ACTIVITIES, shares, strict=True)),
            "steps": round(float(self._steps[of].sum())),
            "kv_used_mean": held,
            "kv_used_peak": float((self._peak_blocks[of] / np.maximum(1.0, blocks)).max(initial=0.0)),
        }

    def over_time_values(self) -> Values:
        """For each role, lists over time of the busy share by activity, and of the share of blocks in use."""
        pools: Values = {}
        table = self.over_time.table() / self.over_time.width_s
        for index, role in enumerate(self._roles):
            of = np.flatnonzero(self._role_of == index).tolist()
            blocks = sum(self._workers[worker].kind.num_blocks for worker in of)
            first = index * (len(ACTIVITIES) + 1)
            shares = {name: (table[first + i] / len(of)).tolist() for i, name in enumerate(ACTIVITIES)}
            pools[role] = shares | {"kv_used": (table[first + len(ACTIVITIES)] / max(1, blocks)).tolist()}
        return {"start_s": self._start_s, "bucket_s": self.over_time.width_s, "pools": pools}

    @property
    def busy_s(self) -> NDArray[np.float64]:
        """[W] seconds in steps."""
        return np.asarray(self._busy_s.sum(axis=1))
