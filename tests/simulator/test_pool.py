"""The counted pool against one that names every block."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.pool import CountedPool, Holding, Name

PIECE_BLOCKS = 2


def names(*numbers: int) -> tuple[Name, ...]:
    return tuple(("", number) for number in numbers)


class NamedPool:
    """The rule, block by block: each is unused, cached under a piece's name, or some sequence's own."""

    def __init__(self, num_blocks: int) -> None:
        self.owner: list[object] = [None] * num_blocks  # None, a piece's name, or who holds it
        self.users: dict[Name, list[int]] = {}
        self.idle: OrderedDict[Name, None] = OrderedDict()  # in the order of their last use

    def count(self, owner: object) -> int:
        return sum(one == owner for one in self.owner)

    @property
    def num_free(self) -> int:
        return sum(one is None or one in self.idle for one in self.owner)

    def take(self, who: int, num_blocks: int) -> None:
        for _ in range(num_blocks):
            if None not in self.owner:
                oldest, _ = self.idle.popitem(last=False)
                del self.users[oldest]
                self.owner = [None if one == oldest else one for one in self.owner]
            self.owner[self.owner.index(None)] = who

    def take_cached(self, who: int, wanted: tuple[Name, ...]) -> int:
        for place, name in enumerate(wanted):
            if name not in self.users:
                return place
            self.users[name].append(who)
            self.idle.pop(name, None)
        return len(wanted)

    def publish(self, who: int, computed: tuple[Name, ...]) -> None:
        for name in computed:
            if name not in self.users and self.count(who) >= PIECE_BLOCKS:
                for _ in range(PIECE_BLOCKS):
                    self.owner[self.owner.index(who)] = name
                self.users[name] = [who]

    def release(self, who: int) -> None:
        self.owner = [None if one == who else one for one in self.owner]
        for name in reversed(self.order_of(who)):
            self.users[name].remove(who)
            if not self.users[name]:
                self.idle[name] = None

    def order_of(self, who: int) -> list[Name]:
        return sorted((name for name, users in self.users.items() if who in users), key=lambda name: name[1])


@given(st.data())
def test_it_counts_what_a_pool_of_named_blocks_holds(data: st.DataObject):
    """Prompts begin alike or not, are computed, end; each takes what it lacks beside what is cached of it."""
    num_blocks = data.draw(st.integers(4, 24))
    pool, model = CountedPool(num_blocks, PIECE_BLOCKS), NamedPool(num_blocks)
    live: dict[int, tuple[Holding, tuple[Name, ...]]] = {}
    for who in range(data.draw(st.integers(1, 25))):
        if live and data.draw(st.booleans()):
            leaver = data.draw(st.sampled_from(sorted(live)))
            pool.release(live.pop(leaver)[0])
            model.release(leaver)
        kin, length = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 5))
        prompt = names(*(kin * 100 + place for place in range(length)))
        num_own = data.draw(st.integers(0, 2))
        holding = Holding()
        assert pool.match(prompt) == sum(name in model.users for name in prompt)
        cached = pool.take_cached(holding, prompt)
        assert cached == model.take_cached(who, prompt)
        missing = (length - cached) * PIECE_BLOCKS + num_own
        assert pool.num_free == model.num_free
        if missing > pool.num_free:
            pool.release(holding)
            model.release(who)
            continue
        pool.take(holding, missing)
        model.take(who, missing)
        computed = data.draw(st.integers(cached, length))
        pool.publish(holding, prompt[cached:computed])
        model.publish(who, prompt[cached:computed])
        live[who] = (holding, prompt)
        assert pool.num_free == model.num_free
        assert pool.num_held == num_blocks - model.num_free
        assert holding.blocks == model.count(who)
        pool.check([one for one, _ in live.values()])
    for holding, _ in live.values():
        pool.release(holding)
    assert pool.num_free == num_blocks
    pool.check([])


def test_what_was_used_least_recently_goes_first_and_of_a_prompt_its_end():
    pool = CountedPool(8, PIECE_BLOCKS)
    old, young = Holding(), Holding()
    for holding, pieces in ((old, names(1, 2)), (young, names(11, 12))):
        pool.take(holding, 4)
        pool.publish(holding, pieces)
    pool.release(old)
    pool.release(young)
    taker = Holding()
    pool.take(taker, 1)
    assert (pool.match(names(1, 2)), pool.match(names(11, 12))) == (1, 2)
    pool.take(taker, 2)
    assert (pool.match(names(1, 2)), pool.match(names(11, 12))) == (0, 2)


def test_a_piece_computed_twice_stays_the_firsts_and_the_copy_goes_with_its_sequence():
    pool = CountedPool(6, PIECE_BLOCKS)
    first, second = Holding(), Holding()
    for holding in (first, second):
        pool.take(holding, 2)
        pool.publish(holding, names(1))
    assert (first.blocks, second.blocks) == (0, 2)
    pool.release(second)
    assert pool.num_free == 4
    pool.release(first)
    assert pool.num_free == 6
    assert pool.match(names(1)) == 1


def test_without_pieces_blocks_are_counts():
    pool, holding = CountedPool(5), Holding()
    pool.take(holding, 3)
    assert (pool.num_free, pool.num_held) == (2, 3)
    pool.release(holding)
    pool.release(holding)
    assert pool.num_free == 5


def test_more_than_is_free_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="6 blocks wanted, 5 free"):
        CountedPool(5).take(Holding(), 6)


def test_check_sees_blocks_that_nobody_gave_back():
    pool, lost = CountedPool(5), Holding()
    pool.take(lost, 1)
    with pytest.raises(AssertionError):
        pool.check([])
