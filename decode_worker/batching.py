"""Which sequences a worker decodes in its next step, which give way, and which handoffs it makes room for.

Pure. Knows counts, not tensors, peers or clocks.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinpool.model.step import StepPlan, Wait

ERRORS_RESERVED = 1.0  # standard deviations of the forecast's error that grants leave free


class Column(IntEnum):
    """What is kept of each sequence, as a row of an array; of one that wants to join, only what comes before HELD."""

    CONTEXT = 0  # tokens whose KV is stored, or will be once it is ready; each decode step adds one
    PROMPT = 1
    LIMIT = 2  # of the answer
    TURN = 3  # how many sequences wanted to join before
    HELD = 4  # blocks
    IS_READY = 5  # 0: its KV is still arriving, or being computed here


class Lengths(Protocol):
    """What is known of how long answers become; see lengths.py."""

    @property
    def error_tokens(self) -> float:
        """Standard deviation of one answer's length."""
        ...

    def predict(
        self, written: NDArray[np.int64], limits: NDArray[np.int64], turns: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Tokens that answers will have at their end; never more than their limits."""
        ...


@dataclass(slots=True)  # made for every step: a frozen one takes twice as long to make
class DecodeView:
    """Sequences that hold blocks (N, oldest first) and handoffs that want blocks (M, oldest first).

    Handoffs already granted count among the N, not ready. ``busy_blocks`` become free or parked by themselves, whatever
    this worker decodes. What few decisions need is computed when it is first asked for, and kept.
    """

    rows: NDArray[np.int64]  # [Column, N]; more below is passed over
    wanted: NDArray[np.int64]  # [Column before HELD, M]; CONTEXT: tokens of KV to receive
    lengths: Lengths
    block_tokens: int
    total_blocks: int
    free_blocks: int
    busy_blocks: int  # held by prompts being computed for others, and by sends under way
    parked_blocks: int  # held by KV that is given up when asked to
    max_running: int
    _predicted: NDArray[np.int64] | None = field(default=None, init=False)  # made once, when first asked for
    _wanted_predicted: NDArray[np.int64] | None = field(default=None, init=False)
    _peak_blocks: int | None = field(default=None, init=False)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[N] Tokens that answers are likely to have at their end."""
        if self._predicted is None:
            rows = self.rows
            written = rows[Column.CONTEXT] - rows[Column.PROMPT] + rows[Column.IS_READY]  # one is not stored yet
            self._predicted = self.lengths.predict(written, rows[Column.LIMIT], rows[Column.TURN])
        return self._predicted

    @property
    def wanted_predicted(self) -> NDArray[np.int64]:
        """[M]"""
        if self._wanted_predicted is None:
            wanted = self.wanted
            written = wanted[Column.CONTEXT] - wanted[Column.PROMPT]
            self._wanted_predicted = self.lengths.predict(written, wanted[Column.LIMIT], wanted[Column.TURN])
        return self._wanted_predicted

    @property
    def peak_blocks(self) -> int:
        """What `forecast_peak_blocks` says."""
        if self._peak_blocks is None:
            self._peak_blocks = forecast_peak_blocks(self)
        return self._peak_blocks


def decide(view: DecodeView, now: float) -> StepPlan:  # noqa: ARG001 - the signature all batching policies share
    """Decode every ready sequence that has a block for its next token; grant handoffs in order while all should fit.

    Grants are always the first so many rows, and there are none while a sequence here lacks a block. Parked KV never
    stands in the way: what is missing is asked for as ``demote_blocks``. Rows without a block sit out, youngest first,
    while that is cheaper than to preempt (see `_num_staying`).
    """
    ready = view.rows[Column.IS_READY].nonzero()[0]
    has_plenty = len(ready) <= view.free_blocks  # no row can lack its block
    if has_plenty and not view.wanted.shape[1]:
        rows = ready[: view.max_running]
        return StepPlan(decode_rows=tuple(rows.tolist()), repeat=_repeat(view, rows))
    staying = ready if has_plenty else ready[: _num_staying(view, ready)]
    rows, missing = (ready[: view.max_running], 0) if has_plenty else _rows_with_blocks(view, staying)
    grants, wait = ((), Wait.DECODE_BLOCKS) if missing else _grants(view)
    preempt = ready[len(staying) :][::-1]
    return StepPlan(
        decode_rows=tuple(rows.tolist()),
        preempt=tuple(preempt.tolist()),
        grants=grants,
        demote_blocks=_blocks_to_demote(view, rows, missing, len(grants)),
        repeat=1 if len(preempt) or grants or wait else _repeat(view, rows),
        wait=Wait.DECODE_PREEMPTED if len(preempt) else wait,
    )


def forecast_peak_blocks(view: DecodeView) -> int:
    """The most blocks that the N rows can hold at once, if each ends when expected.

    Ready rows go on together, one token a step, so their usage peaks just before one of them ends: only those moments
    are looked at (Past-Future, ASPLOS'25: with rows by falling length to go, the k-th moment has the first k alive).
    Nobody knows when a row that is not ready will begin, so it counts with all it is expected to hold. Exact for the
    first, safe for the second. O(N log N + N * block_tokens).
    """
    context, expected, size = view.rows[Column.CONTEXT], _remaining(view.rows, view.predicted), view.block_tokens
    ready = view.rows[Column.IS_READY]
    if np.count_nonzero(ready) == len(ready):
        return _peak_together(context, expected, size)
    is_ready = ready != 0
    waiting = int(_blocks((context + expected)[~is_ready], size).sum())
    return waiting + _peak_together(context[is_ready], expected[is_ready], size)


def _peak_together(context: NDArray[np.int64], expected: NDArray[np.int64], size: int) -> int:
    """The peak of rows [N] that go on together: they hold ``context`` tokens, and ``expected`` more at their end."""
    if not len(context):
        return 0
    by_end = (-expected).argsort()
    full, rest = divmod(context[by_end] + (size - 1), size)
    steps, step_rest = divmod(expected[by_end], size)
    alive = np.arange(1, len(by_end) + 1)
    # ceil((context + to go) / size), summed over the first k rows without an [N, N] table: the whole blocks of both,
    # and one more for each row whose remainder makes a block together with that of the k-th.
    exceeds = (rest[:, None] >= np.arange(size, 0, -1)).cumsum(axis=0)  # [k, r]: of the first k rows, for remainder r
    held = full.cumsum() + alive * steps + exceeds[alive - 1, step_rest]
    return int(held[held.argmax()])


def reserve_blocks(view: DecodeView) -> int:
    """Blocks that the N rows may need above their forecast, as the lengths are only known by their distribution."""
    return int(math.sqrt(_square_error(view)) // view.block_tokens)


def wanted_blocks(view: DecodeView) -> int:
    """What the M that want to join are expected to hold at their end."""
    return int(_wanted_blocks(view).sum())


def new_blocks(view: DecodeView, rows: NDArray[np.intp], num_steps: int) -> int:
    """Blocks that ``rows`` take in their next ``num_steps`` steps."""
    needed = _blocks(view.rows[Column.CONTEXT, rows] + num_steps, view.block_tokens)
    return int(np.maximum(0, needed - view.rows[Column.HELD, rows]).sum())


def _remaining(columns: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens still to store of answers that end at ``lengths`` tokens; the last of an answer never is stored."""
    remaining: NDArray[np.int64] = columns[Column.PROMPT] + lengths - 1 - columns[Column.CONTEXT]
    return remaining


def _blocks(tokens: NDArray[np.int64], block_tokens: int) -> NDArray[np.int64]:
    return (tokens + (block_tokens - 1)) // block_tokens


def _wanted_blocks(view: DecodeView) -> NDArray[np.int64]:
    """[M] What each that wants to join is expected to hold at its end."""
    return _blocks(view.wanted[Column.PROMPT] + view.wanted_predicted - 1, view.block_tokens)


def _wants_block(view: DecodeView, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    wants: NDArray[np.bool_] = view.rows[Column.CONTEXT, rows] >= view.rows[Column.HELD, rows] * view.block_tokens
    return wants


def _num_staying(view: DecodeView, ready: NDArray[np.intp]) -> int:
    """How many of the ready rows, oldest first, keep their blocks: as many as can without holding up an older one.

    A row may sit out for blocks that come back by themselves or for the asking (busy and parked ones): they do within
    the time of a handoff, while a row that leaves pays at least for a handoff and computes its context again. The
    youngest that stays may also sit out for longer: nobody older lacks what it holds, and its place in the queue would
    be no better. The oldest always stays.
    """
    if not len(ready):
        return 0
    wants = _wants_block(view, ready)
    needed_by_older: NDArray[np.int64] = np.cumsum(wants) - wants
    held = view.rows[Column.HELD, ready]
    given_back = np.cumsum(held[::-1])[::-1] - held  # by all that are younger
    coming = view.free_blocks + view.busy_blocks + view.parked_blocks
    return int(np.flatnonzero(needed_by_older <= coming + given_back)[-1]) + 1


def _rows_with_blocks(view: DecodeView, staying: NDArray[np.intp]) -> tuple[NDArray[np.intp], int]:
    able = staying[: view.max_running]
    needs = _wants_block(view, able)
    fits = np.cumsum(needs) <= view.free_blocks
    return able[fits | ~needs], int((needs & ~fits).sum())


def _grants(view: DecodeView) -> tuple[tuple[int, ...], Wait]:
    if not view.wanted.shape[1]:
        return (), Wait.NOTHING
    room = view.max_running - view.rows.shape[1]
    needs = _wanted_blocks(view).cumsum() + _reserves(view)
    fits = needs <= view.total_blocks - view.busy_blocks - view.peak_blocks
    num_fitting = len(fits) if np.count_nonzero(fits) == len(fits) else int(fits.argmin())
    grants = tuple(range(min(num_fitting, max(0, room))))
    if len(grants) == len(needs):
        return grants, Wait.NOTHING
    return grants, Wait.GRANT_SEQUENCES if room <= num_fitting else Wait.GRANT_BLOCKS


def _reserves(view: DecodeView) -> NDArray[np.int64]:
    """[M] Blocks to leave free, with the first 1, 2, ... M of those that want to join.

    Lengths are independent, so their errors add up by squares; none errs beyond its limit. Rounded down, so that a
    sequence that fits alone is always let in when it is alone.
    """
    slack = view.wanted[Column.LIMIT] - view.wanted_predicted
    squares = np.minimum(ERRORS_RESERVED * view.lengths.error_tokens, slack) ** 2
    reserves: NDArray[np.int64] = (np.sqrt(_square_error(view) + squares.cumsum()) // view.block_tokens).astype(
        np.int64
    )
    return reserves


def _square_error(view: DecodeView) -> float:
    """Variance, in tokens, of what the N rows will hold at their ends."""
    error_tokens = ERRORS_RESERVED * view.lengths.error_tokens
    if not error_tokens:
        return 0.0
    return float((np.minimum(error_tokens, view.rows[Column.LIMIT] - view.predicted) ** 2).sum())


def _blocks_to_demote(view: DecodeView, rows: NDArray[np.intp], missing: int, num_grants: int) -> int:
    """What ``rows``, those without a block and the first handoffs lack, beyond what is free."""
    granted = view.wanted[Column.CONTEXT, :num_grants]
    needed = missing + (int(_blocks(granted, view.block_tokens).sum()) if num_grants else 0)
    if needed <= view.free_blocks - len(rows):  # whichever of them take a block
        return 0
    return max(0, needed - max(0, view.free_blocks - new_blocks(view, rows, 1)))


def _repeat(view: DecodeView, rows: NDArray[np.intp]) -> int:
    """Steps until one of ``rows`` ends, or until they have taken all free blocks."""
    if not len(rows):
        return 1
    remaining = _remaining(view.rows, view.rows[Column.LIMIT])[rows]
    most = max(1, int(remaining[remaining.argmin()]))
    if len(rows) * (most // view.block_tokens + 1) <= view.free_blocks:  # whatever room they have left
        return most
    return max(1, min(most, _steps_with_blocks(view, rows, most)))


def _steps_with_blocks(view: DecodeView, rows: NDArray[np.intp], most: int) -> int:
    """For how many steps, ``most`` or fewer, the free blocks suffice ``rows``.

    Where each has less room than a block, as in a running batch, each takes one in every ``block_tokens`` steps: after
    whole rounds of that, the free blocks end when the next row in order of room wants one.
    """
    size = view.block_tokens
    room = view.rows[Column.HELD, rows] * size - view.rows[Column.CONTEXT, rows]
    if room[room.argmax()] < size and room[room.argmin()] >= 0:
        rounds, rest = divmod(view.free_blocks, len(rows))
        room.sort()
        return rounds * size + int(room[rest])
    return bisect_right(range(1, most + 1), view.free_blocks, key=lambda steps: new_blocks(view, rows, steps))
