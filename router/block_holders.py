"""Which columns hold which blocks: a bit mask for each block, so that one walk looks a chain up for all columns.

Knows keys and columns only: neither what a block contains nor which worker a column stands for.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

Key = Hashable  # of a block: in live clusters a number of 64 bits

_SWEEP_AT_LEAST = 256  # keys that each change looks at while closed columns are wiped


class Level(NamedTuple):
    """The columns in ``mask`` hold the first ``num_blocks`` blocks of a chain."""

    mask: int
    num_blocks: int


class BlockHolders:
    """At most ``max_blocks`` blocks; beyond that those go that were neither matched nor stored for longest.

    That order is kept in two generations, as the clock algorithm does: what is matched or stored moves to the younger
    one; the older is given up from its oldest end, and takes the younger's place when it is empty. So a block that was
    used since the generations changed outlives every one that was not, without a list to mend at each use.

    A closed column counts for nothing at once. Its bits are wiped a few blocks at a time, while others change, and only
    then may the column be opened again: whatever a column holds, closing it costs nobody a long wait.
    """

    def __init__(self, max_blocks: int) -> None:
        assert max_blocks > 0
        self._max_blocks = max_blocks
        self._young: dict[Key, int] = {}  # mask by key
        self._old: dict[Key, int] = {}
        self._aging: list[Key] = []  # keys of the old generation, the oldest last; some may have left it
        self._open = 0
        self._free: list[int] = []  # columns, the smallest last
        self._closed = 0  # to be wiped next
        self._wiping = 0  # being wiped
        self._to_wipe: list[Key] = []  # keys that may have bits of these
        self.num_columns = 0  # that were ever open; masks are that wide
        self.num_evicted = 0  # blocks given up for want of room, so far

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    # --- columns --------------------------------------------------------------------------------------------------

    def open(self) -> int:
        """Return an empty column."""
        if self._free:
            column = self._free.pop()
        else:
            column = self.num_columns
            self.num_columns += 1
        self._open |= 1 << column
        return column

    def close(self, column: int) -> None:
        """Forget all that an open column holds."""
        bit = 1 << column
        self._open &= ~bit
        self._closed |= bit

    # --- blocks ---------------------------------------------------------------------------------------------------

    def store(self, keys: Sequence[Key], column: int) -> None:
        """The column holds these blocks. Idempotent."""
        young, old = self._young, self._old
        last = 1 << column
        bit = last
        for key in keys:
            mask = young.get(key)
            if mask is None:
                mask = old.pop(key, 0)
            mask |= bit
            if mask == last:
                mask = last  # one number in memory for all blocks of a chain
            else:
                last = mask
            young[key] = mask
        self._wipe(len(keys))
        while len(young) + len(old) > self._max_blocks:
            self._evict()
            young, old = self._young, self._old

    def remove(self, keys: Sequence[Key], column: int) -> None:
        """The column holds these blocks no more. Idempotent."""
        self._clear(keys, 1 << column)
        self._wipe(len(keys))

    def _clear(self, keys: Iterable[Key], bits: int) -> None:
        kept = ~bits
        for key in keys:
            for generation in (self._young, self._old):
                mask = generation.get(key)
                if mask is None:
                    continue
                if mask & kept:
                    generation[key] = mask & kept
                else:
                    del generation[key]
                break

    def _evict(self) -> None:
        if not self._aging:
            self._old, self._young = self._young, {}
            self._aging = list(self._old)
            self._aging.reverse()
        if self._old.pop(self._aging.pop(), None) is not None:
            self.num_evicted += 1

    def _wipe(self, num_changed: int) -> None:
        """Go on wiping closed columns, in proportion to what is being changed."""
        if not self._wiping:
            if not self._closed:
                return
            self._wiping, self._closed = self._closed, 0
            self._to_wipe = [*self._young, *self._old]
        num_left = max(0, len(self._to_wipe) - _SWEEP_AT_LEAST - 4 * num_changed)
        self._clear(self._to_wipe[num_left:], self._wiping)
        del self._to_wipe[num_left:]
        if not self._to_wipe:
            self._free += columns_of(self._wiping)
            self._free.sort(reverse=True)
            self._wiping = 0

    # --- look-up --------------------------------------------------------------------------------------------------

    def walk(self, chains: Sequence[Sequence[Key]]) -> list[Level]:
        """Who holds how many leading blocks of a chain: levels of more and more blocks, each within the one before.

        With several chains, each names every block in another way, and one name is enough; they end with the shortest.
        What was found counts as matched, and is given up later than what was not.
        """
        levels: list[Level] = []
        first, *others = chains
        other_names = zip(*others, strict=False) if others else repeat(())
        young = self._young
        mask, num_matched = self._open, 0
        for key, names in zip(first, other_names, strict=False):
            held = young.get(key) or self._find(key, mask)
            for name in names:
                held |= self._find(name, mask)
            held &= mask
            if held != mask:
                if num_matched:
                    levels.append(Level(mask, num_matched))
                mask = held
                if not mask:
                    return levels
            num_matched += 1
        if num_matched:
            levels.append(Level(mask, num_matched))
        return levels

    def _find(self, key: Key, wanted: int) -> int:
        """Who holds a block; one that a wanted column holds moves to the young generation."""
        mask = self._young.get(key)
        if mask is not None:
            return mask
        mask = self._old.get(key, 0)
        if mask & wanted:
            self._young[key] = self._old.pop(key)
        return mask

    def check(self) -> None:
        """AssertionError if a rule does not hold. O(blocks)."""
        assert len(self) <= self._max_blocks
        assert not self._young.keys() & self._old.keys(), "a block is in both generations"
        assert self._old.keys() <= set(self._aging), "a block cannot be given up"
        assert not self._open & (self._closed | self._wiping), "an open column is being wiped"
        free = set(self._free)
        for mask in [*self._young.values(), *self._old.values()]:
            assert mask, "a block that nobody holds"
            assert not free & set(columns_of(mask)), "a free column has a bit"


def columns_of(mask: int) -> list[int]:
    """The columns whose bits are set, smallest first."""
    columns = []
    while mask:
        lowest = mask & -mask
        columns.append(lowest.bit_length() - 1)
        mask ^= lowest
    return columns
