"""Sequences that this worker decodes, and handoffs and local prompts that want to join them.

Owned by the engine thread. Decides nothing (see batching.py) and receives nothing: it keeps the running rows and the
references to blocks, and says what happened.
"""

from bisect import insort
from dataclasses import dataclass

import numpy as np

from twinpool.core.messages import FinishReason
from twinpool.decode_worker import batching
from twinpool.decode_worker.batching import DecodeView
from twinpool.model.block_pool import BlockPool, RefKind
from twinpool.model.sequence import Arrival, Key, Sequence, Token
from twinpool.model.step import StepPlan


@dataclass(slots=True, eq=False)
class Wanted:
    """A sequence that wants blocks: its KV will arrive by a handoff, or be computed here (local)."""

    sequence: Sequence
    is_local: bool


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the source said when all KV was sent, and when it was heard."""

    first_token: int
    since_computed_s: float
    wire_s: float
    exposed_s: float
    kv_bytes: int
    heard_s: float


@dataclass(slots=True, eq=False)
class Row:
    """A sequence that holds blocks here."""

    sequence: Sequence
    is_local: bool
    is_ready: bool = False  # its KV is all here
    sealed: Sealed | None = None  # until its first token here is reported

    @property
    def context_tokens(self) -> int:
        return self.sequence.num_computed if self.is_ready else len(self.sequence.token_ids)


class DecodeService:
    """Running rows in order of arrival here, and the queue of those that want to join, in order of age."""

    def __init__(self, pool: BlockPool, *, max_running: int) -> None:
        self._pool = pool
        self._max_running = max_running
        self._rows: list[Row] = []
        self._wanted: list[Wanted] = []

    # --- what the engine sees -------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return sum(row.is_ready for row in self._rows)

    @property
    def num_wanted(self) -> int:
        return len(self._wanted)

    @property
    def context_tokens(self) -> int:
        return sum(row.context_tokens for row in self._rows)

    @property
    def wanted_blocks(self) -> int:
        """What the queued ones will hold at their end."""
        return sum(-(-w.sequence.request.peak_tokens // self._pool.block_tokens) for w in self._wanted)

    @property
    def is_idle(self) -> bool:
        return not self._rows and not self._wanted

    def peak_blocks(self) -> int:
        """Forecast of the most blocks that the rows will hold at once."""
        return batching.forecast_peak_blocks(self.view(busy_blocks=0))

    def sequence(self, row: int) -> Sequence:
        return self._rows[row].sequence

    def blocks_for(self, rows: tuple[int, ...]) -> int:
        """New blocks that one step of these rows takes."""
        return sum(self._wants_block(self._rows[row].sequence) for row in rows)

    def _wants_block(self, sequence: Sequence) -> bool:
        return sequence.num_computed >= len(sequence.block_ids) * self._pool.block_tokens

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, now: float, *, busy_blocks: int) -> StepPlan:
        """Ask the policy for this step's rows and grants."""
        return batching.decide(self.view(busy_blocks), now)

    def view(self, busy_blocks: int) -> DecodeView:
        rows, wanted = self._rows, [w.sequence for w in self._wanted]
        context = [row.context_tokens for row in rows]
        peaks = [row.sequence.request.peak_tokens for row in rows]
        return DecodeView(
            context_tokens=np.array(context, dtype=np.int64),
            remaining_tokens=np.array(peaks, dtype=np.int64) - np.array(context, dtype=np.int64),
            held_blocks=np.array([len(row.sequence.block_ids) for row in rows], dtype=np.int64),
            is_ready=np.array([row.is_ready for row in rows], dtype=np.bool_),
            wanted_tokens=np.array([len(s.token_ids) for s in wanted], dtype=np.int64),
            wanted_remaining=np.array([s.request.peak_tokens - len(s.token_ids) for s in wanted], dtype=np.int64),
            block_tokens=self._pool.block_tokens,
            total_blocks=self._pool.num_blocks,
            free_blocks=self._pool.num_free,
            busy_blocks=busy_blocks,
            max_running=self._max_running,
        )

    def _prompt_blocks(self, sequence: Sequence) -> int:
        return -(-len(sequence.token_ids) // self._pool.block_tokens)

    # --- perform --------------------------------------------------------------------------------------------------

    def want(self, sequence: Sequence, *, is_local: bool) -> None:
        """Queue for blocks."""
        insort(self._wanted, Wanted(sequence, is_local), key=lambda w: w.sequence.age_order)

    def grant_first(self, keep_blocks: int) -> Row | None:
        """Give the oldest queued sequence the blocks of its prompt, cached ones first, as a row.

        Returns None, with nothing changed, while parked blocks have yet to be given up for it: ``keep_blocks`` free
        ones are for the rows that decode in this step.
        """
        wanted = self._wanted[0]
        sequence, pool = wanted.sequence, self._pool
        kind = RefKind.SEQUENCE if wanted.is_local else RefKind.TRANSFER
        reusable = (len(sequence.token_ids) - 1) // pool.block_tokens
        cached = pool.acquire_prefix(sequence.hashes, reusable, kind)
        missing = self._prompt_blocks(sequence) - len(cached)
        if missing > pool.num_free - keep_blocks:
            pool.release(cached, kind)
            return None
        fresh = pool.allocate(missing, kind)
        del self._wanted[0]
        sequence.block_ids = cached + fresh
        sequence.num_published = len(cached)
        sequence.num_computed = sequence.cached_tokens = len(cached) * pool.block_tokens
        row = Row(sequence, wanted.is_local)
        self._rows.append(row)
        return row

    def reserve_next(self, row: int) -> None:
        """Make sure that the next token of ``row`` has a block."""
        sequence = self._rows[row].sequence
        if self._wants_block(sequence):
            sequence.block_ids += self._pool.allocate(1, RefKind.SEQUENCE)

    def adopt(self, key: Key, sealed: Sealed) -> bool:
        """All KV of a handoff has arrived and been verified: the row decodes from the next step on."""
        row = self._find(key)
        if row is None:
            return False
        sequence = row.sequence
        self._pool.hold(sequence.block_ids, RefKind.SEQUENCE)
        self._pool.release(sequence.block_ids, RefKind.TRANSFER)
        sequence.num_computed = len(sequence.token_ids)
        sequence.publish_full_blocks(self._pool)
        sequence.token_ids.append(sealed.first_token)
        row.sealed, row.is_ready = sealed, True
        return True

    def local_ready(self, key: Key) -> None:
        """The prompt of a local row is computed, and its first token appended."""
        row = self._find(key)
        assert row is not None
        row.is_ready = True

    # --- apply ----------------------------------------------------------------------------------------------------

    def apply(self, row_index: int, token_id: int, finish: FinishReason | None, step_s: float) -> Token:
        """Book one decode step of a row, whose token was just appended to its sequence."""
        row = self._rows[row_index]
        sequence = row.sequence
        sequence.num_computed += 1
        sequence.publish_full_blocks(self._pool)
        arrival, row.sealed = _arrival(row.sealed, step_s), None
        index = sequence.next_index - 1
        return Token(sequence.key, sequence.gateway_id, index, token_id, finish, handoff=arrival)

    def drop(self, key: Key) -> None:
        """Forget a row or a queued sequence and give its blocks back. Idempotent."""
        self._wanted = [wanted for wanted in self._wanted if wanted.sequence.key != key]
        row = self._find(key)
        if row is not None:
            kind = RefKind.SEQUENCE if row.is_local or row.is_ready else RefKind.TRANSFER
            self._pool.release(row.sequence.block_ids, kind)
            self._rows.remove(row)

    def cancel(self, key: Key) -> None:
        """As ``drop``, but blocks that a handoff still writes stay until the handoff says that it stopped."""
        row = self._find(key)
        if row is None or row.is_local or row.is_ready:
            self.drop(key)

    def _find(self, key: Key) -> Row | None:
        return next((row for row in self._rows if row.sequence.key == key), None)


def _arrival(sealed: Sealed | None, step_s: float) -> Arrival | None:
    if sealed is None:
        return None
    handoff_s = sealed.since_computed_s + (step_s - sealed.heard_s)
    return Arrival(handoff_s, sealed.wire_s, sealed.exposed_s, sealed.kv_bytes)
