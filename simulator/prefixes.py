"""What simulated workers tell of their prefix caches, and what a gateway knows of them, as cluster/prefix_routing.py.

The index is the live one; blocks are a trace's pieces of prompts. Knows no request's state and decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.router.prefix_index import PrefixIndex
from twinpool.simulator.pool import CountedPool, Name
from twinpool.simulator.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class CacheWord:
    """What changed in a worker's prefix cache since its last message; compare CacheEvents in worker.proto."""

    sequence: int
    stored: Sequence[Name]
    removed: Sequence[Name]


class CacheTeller:
    """Numbers what one worker's process has to tell. It begins with an empty cache, and no word is ever lost."""

    def __init__(self, pool: CountedPool) -> None:
        self._pool = pool
        self._sequence = 0
        pool.note_changes()

    def take_word(self) -> CacheWord | None:
        """What has changed since the last time. None: nothing has."""
        changes = self._pool.take_changes()
        if not changes:
            return None
        self._sequence += 1
        stored = [name for name, is_stored in changes.items() if is_stored]
        removed = [name for name, is_stored in changes.items() if not is_stored]
        return CacheWord(self._sequence, stored, removed)


class KnownPrefixes:
    """Owns one gateway's `PrefixIndex`."""

    def __init__(self) -> None:
        self.index = PrefixIndex()

    def join(self, worker_id: str) -> None:
        """A worker's new process said hello: its cache is empty."""
        self.index.join(worker_id)

    def lost(self, worker_id: str) -> None:
        self.index.lost(worker_id)

    def hear(self, worker_id: str, word: CacheWord) -> None:
        """A worker's word; the first of a process is its full list."""
        is_first = word.sequence == 1
        missed = self.index.apply(worker_id, word.sequence, word.stored, word.removed, cleared=is_first)
        assert missed is None, f"{worker_id}: a word of its cache is missing"

    def cached_tokens(
        self, offered: TraceRequest, num_tokens: int, worker_ids: tuple[str, ...]
    ) -> NDArray[np.int64] | None:
        """[N] of the first ``num_tokens``, which a prefill has to read, what each worker has cached; never all of them.

        None: nothing is known to be cached.
        """
        if not self.index.num_blocks:
            return None
        names = prompt_names(offered)[: (num_tokens - 1) // max(1, offered.hash_tokens)]
        return offered.hash_tokens * self.index.matched([names], worker_ids)


def prompt_names(offered: TraceRequest) -> tuple[Name, ...]:
    """The names of a prompt's whole pieces, from its start; none where the trace has no hashes."""
    num_pieces = offered.prompt_tokens // offered.hash_tokens if offered.hash_tokens else 0
    return tuple([(offered.tenant, name) for name in offered.prefix_hashes[:num_pieces]])
