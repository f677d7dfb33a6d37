"""What a simulated worker decodes, and what wants to join, as the arrays that decode_worker/batching.py decides on.

Stands where decode_worker/service.py stands in a live worker. Decides nothing.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinpool.decode_worker import batching
from twinpool.decode_worker.age_table import AgeTable
from twinpool.decode_worker.batching import Column, DecodeView
from twinpool.decode_worker.lengths import LengthHistory
from twinpool.model.step import StepPlan
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.pool import CountedPool, Holding

STEPS_PER_FORECAST = 16  # as in a live worker


FINAL = len(Column)  # context when the answer will be complete: the world's, below what policies look at


@dataclass(slots=True, eq=False)
class Row:
    """A sequence that wants blocks, or holds some."""

    attempt: Attempt
    is_local: bool
    turn: int
    came_s: float
    holding: Holding = field(default_factory=Holding)
    cached_tokens: int = 0
    holds_blocks: bool = False


class DecodeRows:
    """Rows that hold blocks and those that want to join, both in order of age."""

    def __init__(self, pool: CountedPool, block_tokens: int, max_running: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._max_running = max_running
        self._rows = AgeTable[Row](len(Column) + 1)
        self._wanted = AgeTable[Row](Column.HELD)
        self._by_attempt: dict[Attempt, Row] = {}  # in either table
        self._num_came = 0
        self.lengths = LengthHistory()
        self._num_ready = 0
        self._context_tokens = 0
        self._recent_peak = 0
        self._steps_since_forecast = STEPS_PER_FORECAST

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._by_attempt

    @property
    def num_wanted(self) -> int:
        return len(self._wanted)

    @property
    def num_running(self) -> int:
        return self._num_ready

    @property
    def context_tokens(self) -> int:
        """Of all rows; those that are not ready count with what they will have."""
        return self._context_tokens

    @property
    def wanted_blocks(self) -> int:
        """What those that want to join are expected to hold at their end."""
        return batching.wanted_blocks(self._view(busy_blocks=0, parked_blocks=0)) if len(self._wanted) else 0

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, now: float, *, busy_blocks: int, parked_blocks: int) -> StepPlan:
        """Ask the policy for the next step's rows and grants, and for rows to give up."""
        if not len(self._rows) and not len(self._wanted):
            return StepPlan()
        return batching.decide(self._view(busy_blocks, parked_blocks), now)

    def _view(self, busy_blocks: int, parked_blocks: int) -> DecodeView:
        return DecodeView(
            rows=self._rows.columns,
            wanted=self._wanted.columns,
            lengths=self.lengths,
            block_tokens=self._block_tokens,
            total_blocks=self._pool.num_blocks,
            free_blocks=self._pool.num_free,
            busy_blocks=busy_blocks,
            parked_blocks=parked_blocks,
            max_running=self._max_running,
        )

    def peak_blocks(self) -> int:
        """Forecast of the most blocks that the rows will hold at once, and what it may be wrong by."""
        if not len(self._rows):
            return 0
        view = self._view(busy_blocks=0, parked_blocks=0)
        return batching.forecast_peak_blocks(view) + batching.reserve_blocks(view)

    def recent_peak_blocks(self) -> int:
        """``peak_blocks`` as of the last change of rows, or a few steps ago: for those who only look."""
        if self._steps_since_forecast >= STEPS_PER_FORECAST:
            self._recent_peak, self._steps_since_forecast = self.peak_blocks(), 0
        return self._recent_peak

    # --- perform --------------------------------------------------------------------------------------------------

    def rows(self, indices: tuple[int, ...]) -> list[Row]:
        """Rows of the view that a decision was made from."""
        return [self._rows[index] for index in indices]

    def places(self, rows: list[Row]) -> NDArray[np.intp]:
        """Where rows are now, after others came or went."""
        place_of = {row: place for place, row in enumerate(self._rows)}
        return np.array([place_of[row] for row in rows], np.intp)

    def all_rows(self) -> list[Row]:
        """Those that hold blocks, in order."""
        return list(self._rows)

    def want(self, attempt: Attempt, now: float, *, is_local: bool) -> None:
        """Queue for blocks."""
        row = Row(attempt, is_local, self._num_came, now)
        self._num_came += 1
        self._by_attempt[attempt] = row
        self._wanted.add(row, attempt.age_order, _numbers(row))

    def grant_first(self) -> Row | None:
        """Give the oldest that wants to join the blocks of its prompt, cached pieces first.

        Returns None, with nothing changed, while parked blocks have yet to be given up for it.
        """
        row = self._wanted[0]
        attempt, pool = row.attempt, self._pool
        reusable = attempt.names[: attempt.pieces_in(attempt.num_tokens - 1)]
        num_cached = pool.take_cached(row.holding, reusable) * attempt.piece_tokens
        missing = -(-attempt.num_tokens // self._block_tokens) - num_cached // self._block_tokens
        if missing > pool.num_free:
            pool.release(row.holding)
            return None
        pool.take(row.holding, missing)
        row.cached_tokens = num_cached
        row.holds_blocks = True
        self._wanted.remove(row)
        held = -(-attempt.num_tokens // self._block_tokens)
        self._rows.add(row, attempt.age_order, (*_numbers(row), held, 0, attempt.final_context))
        self._context_tokens += attempt.num_tokens
        self._steps_since_forecast = STEPS_PER_FORECAST
        return row

    def ready(self, attempt: Attempt) -> bool:
        """Its KV is all here, and its first token known: it decodes from the next step on. False: it is gone."""
        row = self._by_attempt.get(attempt)
        if row is None:
            return False
        self._rows.columns[Column.IS_READY, self._rows.index(row)] = 1
        self._num_ready += 1
        self._publish(row, attempt.num_tokens)
        self._steps_since_forecast = STEPS_PER_FORECAST
        return True

    def _publish(self, row: Row, num_computed: int) -> None:
        attempt, num_had = row.attempt, row.cached_tokens // row.attempt.piece_tokens if row.attempt.names else 0
        self._pool.publish(row.holding, attempt.names[num_had : attempt.pieces_in(num_computed)])

    # --- apply ----------------------------------------------------------------------------------------------------

    def outlook(self, indices: NDArray[np.intp]) -> tuple[int, int]:
        """(Decode steps until the first answer of these rows is complete, tokens that they hold together)."""
        columns = self._columns(indices)
        context = columns[Column.CONTEXT]
        return int((columns[FINAL] - context).min()), int(context.sum())

    def _columns(self, indices: NDArray[np.intp]) -> NDArray[np.int64]:
        """Of these rows; a view where they are all."""
        columns = self._rows.columns
        return columns if len(indices) == columns.shape[1] else columns[:, indices]

    def reserve_next(self, indices: NDArray[np.intp]) -> None:
        """Make sure that the next token of each of these rows has a block."""
        if len(indices):
            self._hold(indices, 1)

    def _hold(self, indices: NDArray[np.intp], num_more: int) -> None:
        """Give these rows blocks for so many more tokens each than they have stored."""
        columns = self._columns(indices)
        lacks = columns[Column.CONTEXT] + num_more > columns[Column.HELD] * self._block_tokens
        if not np.count_nonzero(lacks):
            return
        places, columns = indices[lacks], self._rows.columns
        needed = -(-(columns[Column.CONTEXT, places] + num_more) // self._block_tokens)
        new = needed - columns[Column.HELD, places]
        columns[Column.HELD, places] = needed
        for place, count in zip(places.tolist(), new.tolist(), strict=True):
            self._pool.take(self._rows[place].holding, count)

    def stepped(self, indices: NDArray[np.intp], num_steps: int) -> None:
        """So many decode steps of these rows have run: they hold more."""
        if num_steps > 1:
            self._hold(indices, num_steps)
        columns = self._rows.columns
        if len(indices) == columns.shape[1]:
            columns[Column.CONTEXT] += num_steps
        else:
            columns[Column.CONTEXT, indices] += num_steps
        self._context_tokens += num_steps * len(indices)
        self._steps_since_forecast += num_steps

    def complete(self, indices: NDArray[np.intp]) -> list[Row]:
        """Those whose answers are complete."""
        columns = self._rows.columns
        ended = indices[columns[Column.CONTEXT, indices] >= columns[FINAL, indices]]
        return [self._rows[place] for place in ended.tolist()]

    def tokens_said(self, row: Row) -> int:
        """Tokens of the whole answer, up to now."""
        context = int(self._rows.columns[Column.CONTEXT, self._rows.index(row)])
        return context - row.attempt.request.num_prompt_tokens + 1

    def end(self, row: Row) -> None:
        """An answer is complete: its length is remembered, and the row leaves."""
        self.lengths.add(row.attempt.output_tokens)
        self.drop(row.attempt)

    def find(self, attempt: Attempt) -> Row | None:
        """Its row, whether it holds blocks or only wants them."""
        return self._by_attempt.get(attempt)

    def drop(self, attempt: Attempt) -> None:
        """Forget a row and give its blocks back. Idempotent."""
        row = self._by_attempt.pop(attempt, None)
        if row is None:
            return
        if not row.holds_blocks:
            self._wanted.remove(row)
            return
        self._pool.release(row.holding)
        place = self._rows.index(row)
        self._context_tokens -= int(self._rows.columns[Column.CONTEXT, place])
        self._num_ready -= int(self._rows.columns[Column.IS_READY, place])
        self._rows.remove(row)
        self._steps_since_forecast = STEPS_PER_FORECAST

    def attempts(self) -> list[Attempt]:
        """All that hold blocks or want some."""
        return list(self._by_attempt)

    def holdings(self) -> list[Holding]:
        """For checks."""
        return [row.holding for row in self._rows]


def _numbers(row: Row) -> tuple[int, int, int, int]:
    request = row.attempt.request
    return row.attempt.num_tokens, request.num_prompt_tokens, request.sampling.max_tokens, row.turn
