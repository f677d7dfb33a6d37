from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twinpool.model.block_pool import BlockPool, OutOfBlocks, RefKind

NUM_BLOCKS = 8
SEQUENCE, TRANSFER = RefKind.SEQUENCE, RefKind.TRANSFER
kinds = st.sampled_from(RefKind)
chains = st.lists(st.sampled_from("ab"), max_size=5).map(lambda letters: chain("".join(letters)))


def chain(letters: str) -> list[bytes]:
    """Hashes of a chain of blocks: two chains agree as far as their letters do."""
    return [letters[: end + 1].encode() for end in range(len(letters))]


def make_pool(num_blocks: int = NUM_BLOCKS, *, prefix_cache: bool = True) -> BlockPool:
    return BlockPool(num_blocks, 16, prefix_cache=prefix_cache)


def publish_all(pool: BlockPool, block_ids: list[int], hashes: list[bytes]) -> None:
    for block_id, block_hash in zip(block_ids, hashes, strict=True):
        pool.publish(block_id, block_hash)


class PoolMachine(RuleBasedStateMachine):
    """The pool against a brute-force model: a multiset of references, a dict of names, a list of recent uses."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool()
        self.references: Counter[tuple[int, RefKind]] = Counter()
        self.named: dict[bytes, int] = {}
        self.idle: list[int] = []  # cached and not held, least recently used first

    def held(self) -> set[int]:
        return {block_id for (block_id, _), count in self.references.items() if count}

    def takeable(self) -> int:
        return NUM_BLOCKS - len(self.held())

    def take(self, block_ids: list[int], kind: RefKind) -> None:
        self.references.update((block_id, kind) for block_id in block_ids)
        self.idle = [block_id for block_id in self.idle if block_id not in block_ids]

    @rule(num_blocks=st.integers(0, 4), kind=kinds)
    def allocate(self, num_blocks: int, kind: RefKind) -> None:
        if num_blocks > self.takeable():
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(num_blocks, kind)
            return
        num_evicted = max(0, num_blocks - (self.takeable() - len(self.idle)))
        evicted, was_held = self.idle[:num_evicted], self.held()
        block_ids = self.pool.allocate(num_blocks, kind)
        assert len(set(block_ids)) == num_blocks
        assert not was_held & set(block_ids)
        assert set(evicted) == set(self.idle) & set(block_ids)
        self.named = {name: block_id for name, block_id in self.named.items() if block_id not in evicted}
        self.take(block_ids, kind)

    @rule(hashes=chains, limit=st.integers(-1, 6), kind=kinds)
    def acquire_prefix(self, hashes: list[bytes], limit: int, kind: RefKind) -> None:
        matched = 0
        while matched < len(hashes) and hashes[matched] in self.named:
            matched += 1
        assert self.pool.match(hashes) == matched
        block_ids = self.pool.acquire_prefix(hashes, limit, kind)
        assert block_ids == [self.named[name] for name in hashes[: max(0, min(matched, limit))]]
        self.take(block_ids, kind)

    @rule(data=st.data(), kind=kinds)
    def hold(self, data: st.DataObject, kind: RefKind) -> None:
        block_ids = data.draw(st.lists(st.integers(0, NUM_BLOCKS - 1), max_size=4))
        if len(set(block_ids)) < len(block_ids) or not set(block_ids) <= self.held():
            with pytest.raises(ValueError, match="block"):
                self.pool.hold(block_ids, kind)
            return
        self.pool.hold(block_ids, kind)
        self.take(block_ids, kind)

    @rule(data=st.data(), kind=kinds)
    def release(self, data: st.DataObject, kind: RefKind) -> None:
        block_ids = data.draw(st.lists(st.integers(0, NUM_BLOCKS - 1), max_size=4, unique=True))
        if not all(self.references[block_id, kind] for block_id in block_ids):
            with pytest.raises(ValueError, match="reference to release"):
                self.pool.release(block_ids, kind)
            return
        self.give_back(block_ids, kind)

    @precondition(lambda self: self.held())
    @rule(kind=kinds)
    def release_all(self, kind: RefKind) -> None:
        self.give_back([block_id for block_id in range(NUM_BLOCKS) if self.references[block_id, kind]], kind)

    def give_back(self, block_ids: list[int], kind: RefKind) -> None:
        self.pool.release(block_ids, kind)
        self.references.subtract((block_id, kind) for block_id in block_ids)
        cached = set(self.named.values()) - self.held()
        self.idle += [block_id for block_id in reversed(block_ids) if block_id in cached]

    @rule(data=st.data(), block_hash=chains.filter(bool).map(lambda hashes: hashes[-1]))
    def publish(self, data: st.DataObject, block_hash: bytes) -> None:
        block_id = data.draw(st.integers(0, NUM_BLOCKS - 1))
        other = next((name for name, named_id in self.named.items() if named_id == block_id), block_hash)
        if block_id not in self.held() or other != block_hash:
            with pytest.raises(ValueError, match="block"):
                self.pool.publish(block_id, block_hash)
            return
        assert self.pool.publish(block_id, block_hash) == self.named.setdefault(block_hash, block_id)

    @rule()
    def clear_cache(self) -> None:
        self.pool.clear_cache()
        self.named, self.idle = {}, []

    @invariant()
    def pool_agrees_with_the_model(self) -> None:
        self.pool.check()
        assert self.pool.num_free == self.takeable()
        assert self.pool.num_cached == len(self.named)
        assert self.pool.is_idle == (not self.held())
        for kind in RefKind:
            counts = [self.references[block_id, kind] for block_id in range(NUM_BLOCKS)]
            assert counts == [self.pool.num_references(block_id, kind) for block_id in range(NUM_BLOCKS)]
            assert self.pool.count(kind) == sum(count > 0 for count in counts)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_pool_agrees_with_a_brute_force_model = PoolMachine.TestCase


def test_too_large_an_allocation_names_both_numbers_and_takes_nothing() -> None:
    pool = make_pool(4)
    pool.allocate(3, SEQUENCE)
    with pytest.raises(OutOfBlocks, match="2 KV blocks wanted, 1 free") as raised:
        pool.allocate(2, SEQUENCE)
    assert (raised.value.wanted, raised.value.free, pool.num_free) == (2, 1, 1)


def test_a_block_is_free_only_when_no_kind_of_reference_is_left() -> None:
    pool = make_pool(1)
    block_ids = pool.allocate(1, SEQUENCE)
    pool.hold(block_ids, TRANSFER)
    pool.release(block_ids, SEQUENCE)
    assert (pool.num_free, pool.count(TRANSFER), pool.is_idle) == (0, 1, False)
    pool.release(block_ids, TRANSFER)
    assert (pool.num_free, pool.is_idle) == (1, True)


def test_of_several_chains_the_first_that_has_a_block_gives_it_and_a_hole_ends_the_match() -> None:
    pool = make_pool()
    for names in ([b"a0"], [b"b0", b"b1"], [b"b3"]):
        publish_all(pool, pool.allocate(len(names), SEQUENCE), names)
    best, worse = [b"a0", b"a1", b"a2", b"a3"], [b"b0", b"b1", b"b2", b"b3"]
    assert pool.match_best([best, worse], 4) == [0, 1]
    assert pool.match_best([worse, best], 4) == [0, 0]
    assert pool.match_best([best], 4) == [0]
    assert pool.match_best([best, worse], 1) == [0]
    assert pool.match_best([best, worse], -1) == pool.match_best([[], []], 4) == []


def test_free_blocks_go_before_cached_ones_and_the_oldest_cached_chain_goes_first() -> None:
    pool = make_pool(5)
    for letters in ("aa", "bb"):
        block_ids = pool.allocate(2, SEQUENCE)
        publish_all(pool, block_ids, chain(letters))
        pool.release(block_ids, SEQUENCE)
    pool.release(pool.acquire_prefix(chain("aa"), 2, SEQUENCE), SEQUENCE)  # used again: now younger than bb
    pool.allocate(1, SEQUENCE)
    assert [pool.match(chain(letters)) for letters in ("aa", "bb")] == [2, 2]
    pool.allocate(2, SEQUENCE)
    assert [pool.match(chain(letters)) for letters in ("aa", "bb")] == [2, 0]


def test_the_end_of_a_chain_is_evicted_before_its_beginning() -> None:
    pool = make_pool(4)
    block_ids = pool.allocate(4, SEQUENCE)
    publish_all(pool, block_ids, chain("abab"))
    pool.release(block_ids, SEQUENCE)
    for left in (3, 2, 1, 0):
        pool.allocate(1, SEQUENCE)
        assert pool.match(chain("abab")) == left


def test_a_beginning_that_two_chains_share_outlives_both_ends() -> None:
    pool = make_pool(4)
    first = pool.allocate(2, SEQUENCE)
    publish_all(pool, first, chain("ab"))
    second = pool.acquire_prefix(chain("aa"), 2, SEQUENCE) + pool.allocate(1, SEQUENCE)
    publish_all(pool, second, chain("aa"))
    pool.release(second, SEQUENCE)
    pool.release(first, SEQUENCE)
    pool.allocate(3, SEQUENCE)
    assert (pool.match(chain("ab")), pool.num_cached) == (1, 1)


def test_the_first_block_under_a_hash_stays_and_a_second_is_freed_uncached() -> None:
    pool = make_pool(2)
    first, second = pool.allocate(2, SEQUENCE)
    assert pool.publish(first, b"h") == first
    assert pool.publish(second, b"h") == first
    pool.release([first, second], SEQUENCE)
    assert (pool.num_cached, pool.acquire_prefix([b"h"], 1, TRANSFER)) == (1, [first])


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    pool = make_pool(2, prefix_cache=False)
    block_ids = pool.allocate(2, SEQUENCE)
    assert [pool.publish(block_id, bytes([block_id])) for block_id in block_ids] == block_ids
    pool.release(block_ids, SEQUENCE)
    pool.check()
    assert (pool.num_cached, pool.match([b"\0"]), pool.num_free) == (0, 0, 2)


@pytest.mark.parametrize("block_ids", [[0, 0], [-1], [NUM_BLOCKS], [0, 1]], ids=str)
def test_a_wrong_release_is_refused_and_changes_nothing(block_ids: list[int]) -> None:
    pool = make_pool()
    (block_id,) = pool.allocate(1, SEQUENCE)
    assert block_id == 0
    with pytest.raises(ValueError, match="block"):
        pool.release(block_ids, SEQUENCE)
    pool.check()
    assert pool.num_references(0, SEQUENCE) == 1
    with pytest.raises(ValueError, match="no TRANSFER reference"):
        pool.release([0], TRANSFER)
