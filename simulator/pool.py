"""A worker's KV blocks as counts, and, where a trace says what prompts share, the prefixes that are cached in them.

Stands where model/block_pool.py stands in a live worker, without naming blocks: free, evictable and held ones always
add up to the total. Knows no request.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

Name = tuple[str, int]  # of a piece of a prompt: its tenant, and the trace's hash of all tokens up to its end


@dataclass(slots=True, eq=False)
class Holding:
    """What one sequence holds: so many blocks of its own, and references on cached pieces, from its start."""

    blocks: int = 0
    pieces: list[Name] = field(default_factory=list)


class CountedPool:
    """``num_blocks`` blocks; a piece of a prompt, once computed, stays cached until its room is needed.

    A piece is of ``piece_blocks`` blocks, all of which are free, evictable or held together; the least recently used
    goes first. With 0 nothing is shared, and blocks are counts alone.
    """

    def __init__(self, num_blocks: int, piece_blocks: int = 0) -> None:
        self.num_blocks = num_blocks
        self._piece_blocks = piece_blocks
        self._unused = num_blocks  # neither held nor cached
        self._references: dict[Name, int] = {}  # of each cached piece
        self._evictable: OrderedDict[Name, None] = OrderedDict()  # without references, least recently used first
        self._changes: dict[Name, bool] | None = None  # whether cached, of pieces that changed; None: nobody asks

    @property
    def num_free(self) -> int:
        """Blocks that ``take`` can give: unused or evictable."""
        return self._unused + len(self._evictable) * self._piece_blocks

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_free

    def take(self, holding: Holding, num_blocks: int) -> None:
        """Give a sequence blocks of its own; evicts what is cached when there are no unused ones."""
        self.draw(num_blocks)
        holding.blocks += num_blocks

    def draw(self, num_blocks: int) -> None:
        """As ``take``, for several sequences at once: the caller counts what each got to its holding before it goes."""
        assert num_blocks <= self.num_free, f"{num_blocks} blocks wanted, {self.num_free} free"
        while self._unused < num_blocks:
            name, _ = self._evictable.popitem(last=False)
            del self._references[name]
            self._unused += self._piece_blocks
            if self._changes is not None:
                self._changes[name] = False
        self._unused -= num_blocks

    def match(self, names: tuple[Name, ...]) -> int:
        """How many leading pieces are cached. Touches nothing."""
        for index, name in enumerate(names):
            if name not in self._references:
                return index
        return len(names)

    def take_cached(self, holding: Holding, names: tuple[Name, ...]) -> int:
        """Take a reference on each leading piece that is cached; return how many there were."""
        num_matched = self.match(names)
        for name in names[:num_matched]:
            self._references[name] += 1
            self._evictable.pop(name, None)
        holding.pieces += names[:num_matched]
        return num_matched

    def publish(self, holding: Holding, names: tuple[Name, ...]) -> None:
        """A sequence has computed these pieces, which follow those it holds: they are cached, in its own blocks.

        A piece that another one cached meanwhile stays the other's; the copy is the sequence's own until it ends.
        """
        for name in names:
            if name not in self._references and holding.blocks >= self._piece_blocks:
                holding.blocks -= self._piece_blocks
                holding.pieces.append(name)
                self._references[name] = 1
                if self._changes is not None:
                    self._changes[name] = True

    def release(self, holding: Holding) -> None:
        """A sequence is gone; its pieces stay cached, their ends to be evicted before their beginnings."""
        self._unused += holding.blocks
        for name in reversed(holding.pieces):
            self._references[name] -= 1
            if self._references[name] == 0:
                self._evictable[name] = None
        holding.blocks = 0
        holding.pieces.clear()

    def note_changes(self) -> None:
        """From now on ``take_changes`` tells what enters the cache and what leaves it."""
        self._changes = {}

    def take_changes(self) -> dict[Name, bool]:
        """Pieces that entered the cache (True) or left it since this was last asked; of each the newest word only."""
        changes = self._changes
        if not changes:
            return {}
        self._changes = {}
        return changes

    def check(self, holdings: list[Holding]) -> None:
        """AssertionError unless every block is accounted for by these holdings, the cache, or as unused."""
        references: dict[Name, int] = {}
        for holding in holdings:
            for name in holding.pieces:
                references[name] = references.get(name, 0) + 1
        assert {name: count for name, count in self._references.items() if count} == references
        assert {name for name, count in self._references.items() if not count} == set(self._evictable)
        held = sum(holding.blocks for holding in holdings)
        assert self._unused + held + len(self._references) * self._piece_blocks == self.num_blocks
