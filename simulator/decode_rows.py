"""What a simulated worker decodes, and what wants to join, as the arrays that decode_worker/batching.py decides on.

Stands where decode_worker/service.py stands in a live worker. Decides nothing.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from twinpool.decode_worker import batching
from twinpool.decode_worker.age_table import AgeTable
from twinpool.decode_worker.batching import DecodeView
from twinpool.decode_worker.lengths import LengthHistory
from twinpool.model.step import StepPlan
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.pool import CountedPool, Holding

STEPS_PER_FORECAST = 16  # as in a live worker


class Column(IntEnum):
    """What is kept of each sequence; of one that wants to join, only what comes before HELD."""

    CONTEXT = 0  # tokens whose KV is stored, or will be once it is ready
    PROMPT = 1
    LIMIT = 2  # of the answer
    TURN = 3  # how many sequences wanted to join before
    HELD = 4  # blocks
    IS_READY = 5
    FINAL = 6  # context when the answer will be complete: the world's, never shown to a policy


@dataclass(slots=True, eq=False)
class Row:
    """A sequence that wants blocks, or holds some."""

    attempt: Attempt
    is_local: bool
    turn: int
    holding: Holding = field(default_factory=Holding)
    cached_tokens: int = 0
    holds_blocks: bool = False


class DecodeRows:
    """Rows that hold blocks and those that want to join, both in order of age."""

    def __init__(self, pool: CountedPool, block_tokens: int, max_running: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._max_running = max_running
        self._rows = AgeTable[Row](len(Column))
        self._wanted = AgeTable[Row](Column.HELD)
        self._by_attempt: dict[Attempt, Row] = {}  # in either table
        self._num_came = 0
        self.lengths = LengthHistory()
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
        return int(self._rows.columns[Column.IS_READY].sum()) if len(self._rows) else 0

    @property
    def context_tokens(self) -> int:
        return int(self._rows.columns[Column.CONTEXT].sum()) if len(self._rows) else 0

    @property
    def wanted_blocks(self) -> int:
        """What those that want to join are expected to hold at their end."""
        if not len(self._wanted):
            return 0
        tokens = self._wanted.columns[Column.CONTEXT] + self._expected(self._wanted.columns, 0)
        return int((-(-tokens // self._block_tokens)).sum())

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, now: float, *, busy_blocks: int, parked_blocks: int) -> StepPlan:
        """Ask the policy for the next step's rows and grants, and for rows to give up."""
        if not len(self._rows) and not len(self._wanted):
            return StepPlan()
        return batching.decide(self._view(busy_blocks, parked_blocks), now)

    def _view(self, busy_blocks: int, parked_blocks: int) -> DecodeView:
        rows, wanted = self._rows.columns, self._wanted.columns
        is_ready = rows[Column.IS_READY]
        return DecodeView(
            context_tokens=rows[Column.CONTEXT],
            remaining_tokens=_remaining(rows, rows[Column.LIMIT]),
            expected_tokens=self._expected(rows, is_ready),
            held_blocks=rows[Column.HELD],
            is_ready=is_ready.astype(np.bool_),
            wanted_tokens=wanted[Column.CONTEXT],
            wanted_remaining=_remaining(wanted, wanted[Column.LIMIT]),
            wanted_expected=self._expected(wanted, 0),
            error_tokens=self.lengths.error_tokens,
            block_tokens=self._block_tokens,
            total_blocks=self._pool.num_blocks,
            free_blocks=self._pool.num_free,
            busy_blocks=busy_blocks,
            parked_blocks=parked_blocks,
            max_running=self._max_running,
        )

    def _expected(self, columns: NDArray[np.int64], is_ready: NDArray[np.int64] | int) -> NDArray[np.int64]:
        written = columns[Column.CONTEXT] - columns[Column.PROMPT] + is_ready
        return _remaining(columns, self.lengths.predict(written, columns[Column.LIMIT], columns[Column.TURN]))

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

    def want(self, attempt: Attempt, *, is_local: bool) -> None:
        """Queue for blocks."""
        row = Row(attempt, is_local, self._num_came)
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
        self._steps_since_forecast = STEPS_PER_FORECAST
        return row

    def ready(self, attempt: Attempt) -> bool:
        """Its KV is all here, and its first token known: it decodes from the next step on. False: it is gone."""
        row = self._by_attempt.get(attempt)
        if row is None:
            return False
        self._rows.columns[Column.IS_READY, self._rows.index(row)] = 1
        self._publish(row, attempt.num_tokens)
        self._steps_since_forecast = STEPS_PER_FORECAST
        return True

    def _publish(self, row: Row, num_computed: int) -> None:
        attempt, num_had = row.attempt, row.cached_tokens // row.attempt.piece_tokens if row.attempt.names else 0
        self._pool.publish(row.holding, attempt.names[num_had : attempt.pieces_in(num_computed)])

    # --- apply ----------------------------------------------------------------------------------------------------

    def steps_to_first_end(self, indices: NDArray[np.intp]) -> int:
        """Decode steps until the first answer of these rows is complete."""
        columns = self._rows.columns
        return int((columns[Column.FINAL, indices] - columns[Column.CONTEXT, indices]).min())

    def context_of(self, indices: NDArray[np.intp]) -> int:
        """Tokens that these rows hold together."""
        return int(self._rows.columns[Column.CONTEXT, indices].sum())

    def reserve_next(self, indices: NDArray[np.intp]) -> None:
        """Make sure that the next token of each of these rows has a block."""
        if len(indices):
            self._hold(indices, self._rows.columns[Column.CONTEXT, indices] + 1)

    def _hold(self, indices: NDArray[np.intp], context: NDArray[np.int64]) -> None:
        """Give these rows blocks for so many tokens each."""
        columns = self._rows.columns
        lacks = context > columns[Column.HELD, indices] * self._block_tokens
        if not lacks.any():
            return
        needed = -(-context[lacks] // self._block_tokens)
        places = indices[lacks]
        new = needed - columns[Column.HELD, places]
        columns[Column.HELD, places] = needed
        for place, count in zip(places.tolist(), new.tolist(), strict=True):
            self._pool.take(self._rows[place].holding, count)

    def stepped(self, indices: NDArray[np.intp], num_steps: int) -> list[Row]:
        """So many decode steps of these rows have run: they hold more, and those that are complete are returned."""
        columns = self._rows.columns
        context = columns[Column.CONTEXT, indices] + num_steps
        columns[Column.CONTEXT, indices] = context
        self._hold(indices, context)
        self._steps_since_forecast += num_steps
        ended = indices[context >= columns[Column.FINAL, indices]]
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


def _remaining(columns: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens still to store of answers that end at ``lengths`` tokens; the last of an answer never is stored."""
    remaining: NDArray[np.int64] = columns[Column.PROMPT] + lengths - 1 - columns[Column.CONTEXT]
    return remaining
