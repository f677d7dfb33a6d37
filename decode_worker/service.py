"""Sequences that this worker decodes, and handoffs and local prompts that want to join them.

Owned by the engine thread. Decides nothing (see batching.py) and receives nothing: it keeps the running rows and the
references to blocks, and says what happened.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from twinpool.core.messages import FinishReason
from twinpool.core.sampling import TokenLogprobs
from twinpool.decode_worker import batching
from twinpool.decode_worker.age_table import AgeTable
from twinpool.decode_worker.batching import Column, DecodeView
from twinpool.decode_worker.lengths import LengthHistory
from twinpool.model.block_pool import BlockPool, RefKind
from twinpool.model.sequence import Arrival, Key, Sequence, Token
from twinpool.model.step import StepPlan

STEPS_PER_FORECAST = 16  # for those who only look


@dataclass(slots=True, eq=False)
class Wanted:
    """A sequence that wants blocks: its KV will arrive by a handoff, or be computed here (local)."""

    sequence: Sequence
    is_local: bool
    turn: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the source said when all KV was sent, and when it was heard."""

    first_token: int
    since_computed_s: float
    wire_s: float
    exposed_s: float
    kv_bytes: int
    heard_s: float
    quality: str = ""  # of the KV that was sent, as block hashes tell it apart; empty: that of the best chain


@dataclass(slots=True, eq=False)
class Row:
    """A sequence that holds blocks here."""

    sequence: Sequence
    is_local: bool
    is_ready: bool = False  # its KV is all here
    sealed: Sealed | None = None  # until its first token here is reported


class DecodeService:
    """Rows that hold blocks and the queue of those that want to join, both in order of age."""

    def __init__(self, pool: BlockPool, *, max_running: int) -> None:
        self._pool = pool
        self._max_running = max_running
        self._rows = AgeTable[Row](len(Column))
        self._wanted = AgeTable[Wanted](Column.HELD)
        self._num_came = 0
        self.lengths = LengthHistory()
        self._recent_peak = 0
        self._steps_since_forecast = STEPS_PER_FORECAST

    # --- what the engine sees -------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return int(self._rows.columns[Column.IS_READY].sum())

    @property
    def num_wanted(self) -> int:
        return len(self._wanted)

    @property
    def context_tokens(self) -> int:
        return int(self._rows.columns[Column.CONTEXT].sum())

    @property
    def wanted_blocks(self) -> int:
        """What the queued ones are expected to hold at their end."""
        return batching.wanted_blocks(self.view(busy_blocks=0, parked_blocks=0)) if len(self._wanted) else 0

    @property
    def is_idle(self) -> bool:
        return not len(self._rows) and not len(self._wanted)

    def peak_blocks(self) -> int:
        """Forecast of the most blocks that the rows will hold at once, and what it may be wrong by."""
        if not len(self._rows):
            return 0
        view = self.view(busy_blocks=0, parked_blocks=0)
        return batching.forecast_peak_blocks(view) + batching.reserve_blocks(view)

    def recent_peak_blocks(self) -> int:
        """``peak_blocks`` as of the last change of rows, or a few steps ago: for those who only look.

        Steps alone change it little: what a row has stored and what it has still to store add up to the same.
        """
        if self._steps_since_forecast >= STEPS_PER_FORECAST:
            self._recent_peak, self._steps_since_forecast = self.peak_blocks(), 0
        return self._recent_peak

    def rows(self, indices: Items[int]) -> list[Row]:
        """Rows of the view; a decision's indices hold until a row comes or goes."""
        return [self._rows[index] for index in indices]

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError if it differs. Not while a step is under way."""
        self._rows.check()
        self._wanted.check()
        self.lengths.check()
        for row, numbers in zip(self._rows, self._rows.columns.T.tolist(), strict=True):
            sequence = row.sequence
            context = sequence.num_computed if row.is_ready else len(sequence.token_ids)
            held = [len(sequence.block_ids), int(row.is_ready)]
            assert numbers == [*_numbers(sequence, context, numbers[Column.TURN]), *held]
        for wanted, numbers in zip(self._wanted, self._wanted.columns.T.tolist(), strict=True):
            assert tuple(numbers) == _numbers(wanted.sequence, len(wanted.sequence.token_ids), wanted.turn)

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, now: float, *, busy_blocks: int, parked_blocks: int) -> StepPlan:
        """Ask the policy for this step's rows and grants, and for rows to give up."""
        return batching.decide(self.view(busy_blocks, parked_blocks), now)

    def view(self, busy_blocks: int, parked_blocks: int) -> DecodeView:
        """What the policy looks at; good until anything changes here."""
        return DecodeView(
            rows=self._rows.columns,
            wanted=self._wanted.columns,
            lengths=self.lengths,
            block_tokens=self._pool.block_tokens,
            total_blocks=self._pool.num_blocks,
            free_blocks=self._pool.num_free,
            busy_blocks=busy_blocks,
            parked_blocks=parked_blocks,
            max_running=self._max_running,
        )

    def _prompt_blocks(self, sequence: Sequence) -> int:
        return -(-len(sequence.token_ids) // self._pool.block_tokens)

    # --- perform --------------------------------------------------------------------------------------------------

    def want(self, sequence: Sequence, *, is_local: bool) -> None:
        """Queue for blocks."""
        wanted = Wanted(sequence, is_local, self._num_came)
        self._num_came += 1
        self._wanted.add(wanted, sequence.age_order, _numbers(sequence, len(sequence.token_ids), wanted.turn))

    def grant_first(self) -> Row | None:
        """Give the oldest queued sequence the blocks of its prompt, cached ones first, as a row.

        Returns None, with nothing changed, while parked blocks have yet to be given up for it.
        """
        wanted = self._wanted[0]
        sequence, pool = wanted.sequence, self._pool
        kind = RefKind.SEQUENCE if wanted.is_local else RefKind.TRANSFER
        num_full = (len(sequence.token_ids) - 1) // pool.block_tokens
        reusable = sequence.reusable_blocks(pool.block_tokens) if wanted.is_local else num_full
        cached = sequence.take_cached(pool, reusable, kind)
        missing = self._prompt_blocks(sequence) - len(cached)
        if missing > pool.num_free:
            pool.release(cached, kind)
            return None
        fresh = pool.allocate(missing, kind)
        self._wanted.remove(wanted)
        sequence.block_ids = cached + fresh
        sequence.num_published = len(cached)
        sequence.num_computed = sequence.cached_tokens = len(cached) * pool.block_tokens
        row = Row(sequence, wanted.is_local)
        numbers = _numbers(sequence, len(sequence.token_ids), wanted.turn)
        self._rows.add(row, sequence.age_order, (*numbers, len(sequence.block_ids), 0))
        self._steps_since_forecast = STEPS_PER_FORECAST
        return row

    def reserve_next(self, rows: list[Row]) -> None:
        """Make sure that the next token of each of ``rows`` has a block."""
        for row in rows:
            sequence = row.sequence
            if sequence.num_computed >= len(sequence.block_ids) * self._pool.block_tokens:
                sequence.block_ids += self._pool.allocate(1, RefKind.SEQUENCE)
                self._rows.columns[Column.HELD, self._rows.index(row)] += 1

    def adopt(self, key: Key, sealed: Sealed) -> bool:
        """All KV of a handoff has arrived and been verified: the row decodes from the next step on."""
        row = self._find(key)
        if row is None:
            return False
        sequence = row.sequence
        self._pool.hold(sequence.block_ids, RefKind.SEQUENCE)
        self._pool.release(sequence.block_ids, RefKind.TRANSFER)
        sequence.num_computed = len(sequence.token_ids)
        if sealed.quality:
            sequence.coarsen(sealed.quality)
        sequence.publish_full_blocks(self._pool)
        sequence.token_ids.append(sealed.first_token)
        row.sealed = sealed
        self._set_ready(row)
        return True

    def local_ready(self, key: Key) -> None:
        """The prompt of a local row is computed, and its first token appended."""
        row = self._find(key)
        assert row is not None
        self._set_ready(row)

    def _set_ready(self, row: Row) -> None:
        row.is_ready = True
        self._rows.columns[Column.IS_READY, self._rows.index(row)] = 1
        self._steps_since_forecast = STEPS_PER_FORECAST

    # --- apply ----------------------------------------------------------------------------------------------------

    def stepped(self, rows: list[Row]) -> None:
        """One decode step of ``rows`` has run; `apply` follows for each that has a token."""
        chosen = set(map(id, rows))
        self._rows.columns[Column.CONTEXT] += np.array([id(row) in chosen for row in self._rows], np.int64)
        self._steps_since_forecast += 1

    def apply(
        self,
        row: Row,
        token_id: int,
        finish: FinishReason | None,
        step_s: float,
        logprobs: TokenLogprobs | None = None,
    ) -> Token:
        """Book a row's token, just appended to its sequence. With the last one, the row leaves."""
        sequence = row.sequence
        sequence.num_computed += 1
        sequence.publish_full_blocks(self._pool)
        arrival, row.sealed = _arrival(row.sealed, step_s), None
        index = sequence.next_index - 1
        if finish is not None:
            self.end(sequence.key)
        return Token(sequence.key, sequence.gateway_id, index, token_id, finish, handoff=arrival, logprobs=logprobs)

    def end(self, key: Key) -> None:
        """As ``drop``, of an answer that is complete: its length is remembered."""
        row = self._find(key)
        if row is not None:
            self.lengths.add(row.sequence.next_index)
            self._leave(row)

    def drop(self, key: Key) -> None:
        """Forget a row or a queued sequence and give its blocks back. Idempotent."""
        for wanted in [wanted for wanted in self._wanted if wanted.sequence.key == key]:
            self._wanted.remove(wanted)
        row = self._find(key)
        if row is not None:
            self._leave(row)

    def _leave(self, row: Row) -> None:
        kind = RefKind.SEQUENCE if row.is_local or row.is_ready else RefKind.TRANSFER
        self._pool.release(row.sequence.block_ids, kind)
        self._rows.remove(row)
        self._steps_since_forecast = STEPS_PER_FORECAST

    def cancel(self, key: Key) -> None:
        """As ``drop``, but blocks that a handoff still writes stay until the handoff says that it stopped."""
        row = self._find(key)
        if row is None or row.is_local or row.is_ready:
            self.drop(key)

    def _find(self, key: Key) -> Row | None:
        return next((row for row in self._rows if row.sequence.key == key), None)


def _numbers(sequence: Sequence, context_tokens: int, turn: int) -> tuple[int, int, int, int]:
    request = sequence.request
    return context_tokens, request.num_prompt_tokens, request.sampling.max_tokens, turn


def _arrival(sealed: Sealed | None, step_s: float) -> Arrival | None:
    if sealed is None:
        return None
    handoff_s = sealed.since_computed_s + (step_s - sealed.heard_s)
    return Arrival(handoff_s, sealed.wire_s, sealed.exposed_s, sealed.kv_bytes)
