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
NO_STEP = StepPlan()


# Two more columns, below what policies look at. Both fall by one with each step.
ROOM = len(Column)  # tokens that its blocks still have room for
LEFT = ROOM + 1  # steps until its answer is complete, which only the world knows


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
    num_settled: int = 0  # blocks that it was given while it decoded, and that its holding knows of


class DecodeRows:
    """Rows that hold blocks and those that want to join, both in order of age."""

    def __init__(self, pool: CountedPool, block_tokens: int, max_running: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._max_running = max_running
        self._rows = AgeTable[Row](LEFT + 1)
        self._wanted = AgeTable[Row](Column.HELD)
        self._by_attempt: dict[Attempt, Row] = {}  # in either table
        self._num_came = 0
        self.lengths = LengthHistory()
        self._num_ready = 0
        self._context_tokens = 0
        self._ready_tokens = 0  # of these, what rows that are ready hold
        self._wanted_blocks: int | None = 0  # None: to be computed
        self._seen: DecodeView | None = None  # a view of rows as they are; None: they have changed
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
        if self._wanted_blocks is None:
            self._wanted_blocks = batching.wanted_blocks(self._view()) if len(self._wanted) else 0
        return self._wanted_blocks

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, now: float, *, busy_blocks: int, parked_blocks: int) -> StepPlan:
        """Ask the policy for the next step's rows and grants, and for rows to give up."""
        if not len(self._rows) and not len(self._wanted):
            return NO_STEP
        return batching.decide(self._view(busy_blocks, parked_blocks), now)

    def _view(self, busy_blocks: int = 0, parked_blocks: int = 0) -> DecodeView:
        """What the policy looks at, with what was computed for the last view if that is still so."""
        view = self._seen
        if view is None:
            view = self._seen = DecodeView(
                rows=self._rows.columns,
                wanted=self._wanted.columns,
                lengths=self.lengths,
                block_tokens=self._block_tokens,
                total_blocks=self._pool.num_blocks,
                free_blocks=0,
                busy_blocks=0,
                parked_blocks=0,
                max_running=self._max_running,
            )
        view.free_blocks, view.busy_blocks, view.parked_blocks = self._pool.num_free, busy_blocks, parked_blocks
        return view

    def _changed(self, *, rows: bool = True, wanted: bool = False) -> None:
        """Rows came, went or began to decode; or others want to join, or are predicted to want more."""
        self._seen = None
        if rows:
            self._steps_since_forecast = STEPS_PER_FORECAST
        if wanted:
            self._wanted_blocks = None

    def peak_blocks(self) -> int:
        """Forecast of the most blocks that the rows will hold at once, and what it may be wrong by."""
        if not len(self._rows):
            return 0
        view = self._view()
        return view.peak_blocks + batching.reserve_blocks(view)

    def recent_peak_blocks(self) -> int:
        """``peak_blocks`` as of the last change of rows, or a few steps ago: for those who only look."""
        if self._steps_since_forecast >= STEPS_PER_FORECAST:
            self._recent_peak, self._steps_since_forecast = self.peak_blocks(), 0
        return self._recent_peak

    # --- perform --------------------------------------------------------------------------------------------------

    def rows(self, indices: tuple[int, ...]) -> list[Row]:
        """Rows of the view that a decision was made from."""
        return [self._rows[index] for index in indices]

    def places(self, indices: tuple[int, ...]) -> NDArray[np.intp]:
        """A decision's rows as an array."""
        if len(indices) == len(self._rows):
            return np.arange(len(indices))  # all of them: several times faster than to read a tuple
        return np.array(indices, np.intp)

    def places_of(self, rows: list[Row]) -> NDArray[np.intp]:
        """Where rows are now, after others came or went."""
        place_of = {row: place for place, row in enumerate(self._rows)}
        return np.array([place_of[row] for row in rows], np.intp)

    def place(self, row: Row) -> int:
        return self._rows.index(row)

    def all_rows(self) -> list[Row]:
        """Those that hold blocks, in order."""
        return list(self._rows)

    def want(self, attempt: Attempt, came_s: float, *, is_local: bool) -> None:
        """Queue for blocks."""
        row = Row(attempt, is_local, self._num_came, came_s)
        self._num_came += 1
        self._by_attempt[attempt] = row
        self._wanted.add(row, attempt.age_order, _numbers(row))
        self._changed(rows=False, wanted=True)

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
        held, context = -(-attempt.num_tokens // self._block_tokens), attempt.num_tokens
        room, left = held * self._block_tokens - context, attempt.final_context - context
        self._rows.add(row, attempt.age_order, (*_numbers(row), held, 0, room, left))
        self._context_tokens += context
        self._changed(wanted=True)
        return row

    def ready(self, attempt: Attempt) -> bool:
        """Its KV is all here, and its first token known: it decodes from the next step on. False: it is gone."""
        row = self._by_attempt.get(attempt)
        if row is None:
            return False
        self._rows.columns[Column.IS_READY, self._rows.index(row)] = 1
        self._num_ready += 1
        self._ready_tokens += attempt.num_tokens
        self._publish(row, attempt.num_tokens)
        self._changed()
        return True

    def _publish(self, row: Row, num_computed: int) -> None:
        attempt = row.attempt
        if not attempt.names:
            return
        num_had = row.cached_tokens // attempt.piece_tokens
        self._pool.publish(row.holding, attempt.names[num_had : attempt.pieces_in(num_computed)])

    # --- apply ----------------------------------------------------------------------------------------------------

    def outlook(self, indices: NDArray[np.intp]) -> tuple[int, int]:
        """(Decode steps until the first answer of these rows is complete, tokens that they hold together)."""
        columns = self._columns(indices)
        left = columns[LEFT]
        is_all = len(indices) == self._num_ready  # only rows that are ready decode
        context = self._ready_tokens if is_all else int(columns[Column.CONTEXT].sum())
        return int(left[left.argmin()]), context

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
        columns, size = self._rows.columns, self._block_tokens
        room = columns[ROOM]
        if len(indices) < len(room):
            room = room[indices]
        if room[room.argmin()] >= num_more:
            return
        new = np.maximum((num_more + (size - 1) - room) // size, 0)
        if len(new) == columns.shape[1]:
            columns[Column.HELD] += new
            columns[ROOM] += new * size
        else:
            columns[Column.HELD, indices] += new
            columns[ROOM, indices] += new * size
        self._pool.draw(int(new.sum()))

    def _settle(self, row: Row, place: int) -> None:
        """Count what a row was given while it decoded to its holding, too: when somebody asks, as that is seldom."""
        granted = -(-row.attempt.num_tokens // self._block_tokens)
        row.holding.blocks += int(self._rows.columns[Column.HELD, place]) - granted - row.num_settled
        row.num_settled = int(self._rows.columns[Column.HELD, place]) - granted

    def stepped(self, indices: NDArray[np.intp], num_steps: int) -> None:
        """So many decode steps of these rows have run: they hold more."""
        if num_steps > 1:
            self._hold(indices, num_steps)
        columns = self._rows.columns
        if len(indices) == columns.shape[1]:
            columns[Column.CONTEXT] += num_steps
            columns[ROOM:] -= num_steps
        else:
            columns[Column.CONTEXT, indices] += num_steps
            columns[ROOM:, indices] -= num_steps
        self._context_tokens += num_steps * len(indices)
        self._ready_tokens += num_steps * len(indices)
        self._steps_since_forecast += num_steps
        self._changed(rows=False)

    def complete(self, indices: NDArray[np.intp]) -> list[Row]:
        """Those whose answers are complete."""
        ended = indices[self._columns(indices)[LEFT] <= 0]
        return [self._rows[place] for place in ended.tolist()]

    def tokens_said(self, row: Row) -> int:
        """Tokens of the whole answer, up to now."""
        context = int(self._rows.columns[Column.CONTEXT, self._rows.index(row)])
        return context - row.attempt.request.num_prompt_tokens + 1

    def end(self, row: Row) -> None:
        """An answer is complete: its length is remembered, and the row leaves."""
        self.lengths.add(row.attempt.output_tokens)
        self._changed(wanted=True)
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
            self._changed(rows=False, wanted=True)
            return
        place, columns = self._rows.index(row), self._rows.columns
        self._settle(row, place)
        self._pool.release(row.holding)
        context = int(columns[Column.CONTEXT, place])
        self._context_tokens -= context
        if columns[Column.IS_READY, place]:
            self._num_ready -= 1
            self._ready_tokens -= context
        self._rows.remove(row)
        self._changed()

    def attempts(self) -> list[Attempt]:
        """All that hold blocks or want some."""
        return list(self._by_attempt)

    def holdings(self) -> list[Holding]:
        """For checks."""
        for place, row in enumerate(self._rows):
            self._settle(row, place)
        return [row.holding for row in self._rows]

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError if it differs."""
        columns, size = self._rows.columns, self._block_tokens
        context, is_ready = columns[Column.CONTEXT], columns[Column.IS_READY] > 0
        assert self._num_ready == is_ready.sum()
        assert self._context_tokens == context.sum()
        assert self._ready_tokens == context[is_ready].sum()
        assert (columns[ROOM] == columns[Column.HELD] * size - context).all()
        assert (columns[LEFT] == [row.attempt.final_context for row in self._rows] - context).all()
        assert self._wanted_blocks in (None, batching.wanted_blocks(self._view()) if len(self._wanted) else 0)


def _numbers(row: Row) -> tuple[int, int, int, int]:
    request = row.attempt.request
    return row.attempt.num_tokens, request.num_prompt_tokens, request.sampling.max_tokens, row.turn
