"""Who holds which KV block: three kinds of reference counted in one pool, and the prefix cache over the same blocks.

Knows block ids and hashes only: neither the memory behind them nor which request asks. One thread owns a pool.
"""

from collections import OrderedDict
from collections.abc import Sequence
from enum import IntEnum
from itertools import islice

from twinpool.core.errors import TwinpoolError


class RefKind(IntEnum):
    """Why a block may not be given away yet. The third kind, a cache entry, is the pool's own."""

    SEQUENCE = 0  # a sequence whose steps read or write it
    TRANSFER = 1  # a send or a receive that is not acknowledged


class OutOfBlocks(TwinpoolError):
    """More blocks were wanted than are free or evictable; nothing was allocated."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} KV blocks wanted, {free} free")
        self.wanted = wanted
        self.free = free


class BlockPool:
    """``num_blocks`` blocks, ids [0, num_blocks). Each is in exactly one of three states:

    - free: nothing references it;
    - evictable: only its cache entry does; the least recently used one goes first;
    - held: references of either kind, with or without a cache entry.

    A block has at most one cache entry and a hash names at most one block. All operations cost O(1) for each block they
    name; one that raises has changed nothing. ValueError means a bug of the caller: unknown ids, the same id twice in
    one call, releasing what is not held.
    """

    def __init__(self, num_blocks: int, block_tokens: int, *, prefix_cache: bool) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.prefix_cache = prefix_cache
        self._counts = tuple([0] * num_blocks for _ in RefKind)  # references of each kind, by block
        self._num_held = [0 for _ in RefKind]  # blocks with at least one reference of the kind
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._changes: dict[bytes, bool] | None = None  # whether cached, of hashes that changed; None: nobody asks

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` can give: free or evictable."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Blocks with a cache entry, held or not."""
        return len(self._block_of)

    @property
    def is_idle(self) -> bool:
        """Whether no sequence and no transfer holds a block: so it must be when no request is left."""
        return not any(self._num_held)

    def count(self, kind: RefKind) -> int:
        """Blocks with at least one reference of this kind."""
        return self._num_held[kind]

    def num_references(self, block_id: int, kind: RefKind) -> int:
        """References of this kind to one block."""
        return self._counts[kind][block_id]

    def allocate(self, num_blocks: int, kind: RefKind) -> list[int]:
        """Take blocks with undefined content, one reference each; evicts cache entries when the free ones run out.

        Raises:
            OutOfBlocks: fewer are free or evictable.
        """
        if num_blocks < 0:
            raise ValueError(f"{num_blocks} blocks wanted")
        if num_blocks > self.num_free:
            raise OutOfBlocks(num_blocks, self.num_free)
        block_ids = [self._free.pop() if self._free else self._evict() for _ in range(num_blocks)]
        self._add_references(block_ids, kind)
        return block_ids

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many leading ``hashes`` are cached. Takes and touches nothing."""
        for index, block_hash in enumerate(hashes):
            if block_hash not in self._block_of:
                return index
        return len(hashes)

    def match_best(self, chains: Sequence[Sequence[bytes]], limit: int) -> list[int]:
        """For each leading block, at most ``limit``, which of the chains names a cached one: the first that does.

        Ends at the first block that none does. Takes and touches nothing.
        """
        if len(chains) == 1:
            return [0] * self.match(chains[0][: max(limit, 0)])
        found: list[int] = []
        for names in islice(zip(*chains, strict=False), max(limit, 0)):
            best = next((index for index, name in enumerate(names) if name in self._block_of), None)
            if best is None:
                break
            found.append(best)
        return found

    def acquire_prefix(self, hashes: Sequence[bytes], limit: int, kind: RefKind) -> list[int]:
        """Take one reference on each of the leading cached blocks of ``hashes``, at most ``limit`` of them."""
        num_matched = self.match(hashes[: max(limit, 0)])
        block_ids = [self._block_of[block_hash] for block_hash in hashes[:num_matched]]
        self._add_references(block_ids, kind)
        return block_ids

    def hold(self, block_ids: Sequence[int], kind: RefKind) -> None:
        """Add one reference to each block; somebody must hold it already (of any kind)."""
        self._check_ids(block_ids)
        for block_id in block_ids:
            if not self._is_held(block_id):
                raise ValueError(f"block {block_id} is not held")
        self._add_references(block_ids, kind)

    def release(self, block_ids: Sequence[int], kind: RefKind) -> None:
        """Drop one reference of each block. One that nothing holds any more is free, or evictable if it is cached.

        Release the blocks of one sequence in one call and in the sequence's order: then its end is evicted before the
        beginning, without which the end could not be found.
        """
        self._check_ids(block_ids)
        counts = self._counts[kind]
        for block_id in block_ids:
            if counts[block_id] == 0:
                raise ValueError(f"block {block_id} has no {kind.name} reference to release")
        for block_id in reversed(block_ids):
            counts[block_id] -= 1
            if counts[block_id] == 0:
                self._num_held[kind] -= 1
                if not self._is_held(block_id):
                    self._retire(block_id)

    def publish(self, block_id: int, block_hash: bytes) -> int:
        """Enter a held, fully written block in the cache; return the block that this hash now names.

        That is another block if one was cached under the hash before: the first stays. Without a prefix cache nothing
        happens.

        Raises:
            ValueError: nobody holds the block, or it is cached under another hash.
        """
        self._check_ids((block_id,))
        if not self._is_held(block_id):
            raise ValueError(f"block {block_id} is not held")
        if self._hash_of[block_id] not in (None, block_hash):
            raise ValueError(f"block {block_id} is cached under another hash")
        if not self.prefix_cache:
            return block_id
        if block_hash not in self._block_of:
            self._enter(block_id, block_hash)
        return self._block_of[block_hash]

    def clear_cache(self) -> None:
        """Drop every cache entry; evictable blocks become free, held ones stay held."""
        for block_id in list(self._block_of.values()):
            self._leave(block_id)
        self._free.extend(self._evictable)
        self._evictable.clear()

    # --- who wants to know what is cached -------------------------------------------------------------------------

    def cached_hashes(self) -> list[bytes]:
        """All hashes that name a block now; from now on ``take_changes`` tells what changes."""
        self._changes = {}
        return list(self._block_of)

    def take_changes(self) -> dict[bytes, bool]:
        """Hashes that entered the cache (True) or left it since this was last asked; of each the newest word only."""
        changes = self._changes
        if not changes:
            return {}
        self._changes = {}
        return changes

    def ignore_changes(self) -> None:
        """Nobody wants to know any more, until ``cached_hashes`` is called again."""
        self._changes = None

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError names the first rule that does not hold. O(num_blocks)."""
        for kind in RefKind:
            assert all(count >= 0 for count in self._counts[kind]), f"negative {kind.name} count"
            assert self._num_held[kind] == sum(count > 0 for count in self._counts[kind]), (
                f"{kind.name} blocks miscounted"
            )
        cached = {block_id: name for block_id, name in enumerate(self._hash_of) if name is not None}
        assert {name: block_id for block_id, name in cached.items()} == self._block_of, "hashes and blocks disagree"
        assert len(cached) == len(self._block_of), "two blocks under one hash"
        held = {block_id for block_id in range(self.num_blocks) if self._is_held(block_id)}
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert set(self._evictable) == cached.keys() - held, "evictable is not: cached and not held"
        assert free == set(range(self.num_blocks)) - held - cached.keys(), "free is not: neither held nor cached"

    def _check_ids(self, block_ids: Sequence[int]) -> None:
        if len(set(block_ids)) != len(block_ids):
            raise ValueError(f"a block is named twice: {sorted(block_ids)}")
        for block_id in block_ids:
            if not 0 <= block_id < self.num_blocks:
                raise ValueError(f"no block {block_id} in a pool of {self.num_blocks}")

    def _is_held(self, block_id: int) -> bool:
        return self._counts[RefKind.SEQUENCE][block_id] > 0 or self._counts[RefKind.TRANSFER][block_id] > 0

    def _add_references(self, block_ids: Sequence[int], kind: RefKind) -> None:
        counts = self._counts[kind]
        for block_id in block_ids:
            self._evictable.pop(block_id, None)
            if counts[block_id] == 0:
                self._num_held[kind] += 1
            counts[block_id] += 1

    def _retire(self, block_id: int) -> None:
        if self._hash_of[block_id] is None:
            self._free.append(block_id)
        else:
            self._evictable[block_id] = None

    def _evict(self) -> int:
        block_id, _ = self._evictable.popitem(last=False)
        self._leave(block_id)
        return block_id

    def _enter(self, block_id: int, block_hash: bytes) -> None:
        """The one place where a hash enters the cache."""
        self._hash_of[block_id] = block_hash
        self._block_of[block_hash] = block_id
        if self._changes is not None:
            self._changes[block_hash] = True

    def _leave(self, block_id: int) -> None:
        """The one place where a hash leaves the cache."""
        block_hash = self._hash_of[block_id]
        assert block_hash is not None
        del self._block_of[block_hash]
        self._hash_of[block_id] = None
        if self._changes is not None:
            self._changes[block_hash] = False
