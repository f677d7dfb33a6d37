"""Which worker holds which leading blocks of a prompt in its prefix cache, from what the workers tell.

Knows the short names of blocks (64 of the 128 bits of model/block_hash.py), not what is in them. Two blocks whose short
names agree are taken for one: the request then goes to a worker that does not hold its block. That costs computing the
block there and can never give a wrong answer, as workers compare whole names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.router.block_holders import BlockHolders, Key, Level

MAX_BLOCKS = 2_000_000  # of all workers together; about 90 bytes each


@dataclass(frozen=True, slots=True)
class Resync:
    """Ask this worker for all that it holds: what is known of it is not the whole."""

    worker_id: str


@dataclass(slots=True)
class _Source:
    """One worker's column, and how far its word was heard."""

    column: int
    sequence: int = 0  # of the last message
    is_known: bool = False  # a full list has come, and all messages since


class PrefixIndex:
    """Owns what one gateway knows of the workers' prefix caches.

    Names are chained, so that a worker that holds a block is of use for it only if it holds all before: look-ups walk
    a prompt from its start, for all workers at once, until none is left.
    """

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._holders = BlockHolders(max_blocks)
        self._sources: dict[str, _Source] = {}
        self._asked_for: tuple[str, ...] = ()  # the workers of the last look-up,
        self._columns: NDArray[np.intp] | None = None  # and their columns; None: one has changed
        self.num_gaps = 0  # times that messages were missing

    @property
    def num_blocks(self) -> int:
        """Blocks that anybody holds."""
        return len(self._holders)

    @property
    def num_evicted(self) -> int:
        """Blocks forgotten here, though not by their workers, for want of room."""
        return self._holders.num_evicted

    # --- what workers tell ----------------------------------------------------------------------------------------

    def join(self, worker_id: str) -> Resync:
        """A worker said hello: it counts as empty until its full list has come. What it held before is forgotten."""
        self.lost(worker_id)
        self._sources[worker_id] = _Source(self._holders.open())
        self._columns = None
        return Resync(worker_id)

    def lost(self, worker_id: str) -> None:
        """The worker is gone, with all that it held. Idempotent."""
        source = self._sources.pop(worker_id, None)
        if source is not None:
            self._holders.close(source.column)
            self._columns = None

    def apply(
        self, worker_id: str, sequence: int, stored: Sequence[Key], removed: Sequence[Key], *, cleared: bool = False
    ) -> Resync | None:
        """Take a worker's word on its cache: ``removed`` first, then ``stored``; a block is in one of them at most.

        Messages of one worker are numbered one after another. With ``cleared`` it holds nothing but what this message
        and the next ones tell, whatever was missed before; so begins a full list.

        Returns a Resync when messages are missing just before this one. Until the full list comes the worker counts as
        empty. Words of a worker that has not joined are ignored.
        """
        source = self._sources.get(worker_id)
        if source is None:
            return None
        is_missing = not cleared and sequence != source.sequence + 1
        source.sequence = sequence
        if cleared or (is_missing and source.is_known):
            self._empty(source)
        source.is_known = cleared or (source.is_known and not is_missing)
        if is_missing:
            self.num_gaps += 1
            return Resync(worker_id)
        if not source.is_known:
            return None
        if removed:
            self._holders.remove(removed, source.column)
        if stored:
            self._holders.store(stored, source.column)
        return None

    def _empty(self, source: _Source) -> None:
        self._holders.close(source.column)
        source.column = self._holders.open()
        self._columns = None

    # --- look-up --------------------------------------------------------------------------------------------------

    def matched(self, chains: Sequence[Sequence[Key]], worker_ids: tuple[str, ...]) -> NDArray[np.int64]:
        """How many leading blocks of a prompt each of N workers holds, [N]; 0 for those that are not known.

        Args:
            chains: the short names of the prompt's blocks, from its start; several where a block may be held in one of
                several qualities, each of which names it differently.
        """
        levels = self._holders.walk(chains)
        if not levels:
            return np.zeros(len(worker_ids), np.int64)
        return _counts(levels, self._holders.num_columns)[self._columns_for(worker_ids)]

    def _columns_for(self, worker_ids: tuple[str, ...]) -> NDArray[np.intp]:
        """[N]; of a worker that is not known, one that is never open."""
        if self._columns is None or worker_ids is not self._asked_for:
            never = self._holders.num_columns
            sources = [self._sources.get(worker_id) for worker_id in worker_ids]
            self._columns = np.array([never if source is None else source.column for source in sources], np.intp)
            self._asked_for = worker_ids
        return self._columns

    def check(self) -> None:
        """AssertionError if a rule does not hold. O(blocks)."""
        self._holders.check()
        columns = [source.column for source in self._sources.values()]
        assert len(set(columns)) == len(columns), "two workers in one column"


def _counts(levels: Sequence[Level], num_columns: int) -> NDArray[np.int64]:
    """Blocks by column, and at least one 0 after the last: how many levels a column is in says which is its last."""
    num_bytes = num_columns // 8 + 1
    masks = np.frombuffer(b"".join([level.mask.to_bytes(num_bytes, "little") for level in levels]), np.uint8)
    bits = np.unpackbits(masks.reshape(len(levels), num_bytes), axis=1, bitorder="little")
    num_blocks = np.array([0, *(level.num_blocks for level in levels)], np.int64)
    counts: NDArray[np.int64] = num_blocks[bits.sum(axis=0, dtype=np.intp)]
    return counts
