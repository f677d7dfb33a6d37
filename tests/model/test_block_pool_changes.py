"""What a pool tells of its prefix cache: nothing unless asked, and then what turns its list into what is cached."""

import hypothesis.strategies as st
from hypothesis import given

from twinpool.model.block_hash import short_names
from twinpool.model.block_pool import BlockPool, RefKind

SEQUENCE = RefKind.SEQUENCE


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def cache(pool: BlockPool, *numbers: int) -> None:
    """Blocks under these names, that nobody holds."""
    for number in numbers:
        (block_id,) = pool.allocate(1, SEQUENCE)
        pool.publish(block_id, name(number))
        pool.release([block_id], SEQUENCE)


def test_nothing_is_noted_while_nobody_asks() -> None:
    pool = BlockPool(4, 16, prefix_cache=True)
    cache(pool, 1)
    assert pool.take_changes() == {}
    assert pool.cached_hashes() == [name(1)]
    pool.ignore_changes()
    cache(pool, 2)
    assert pool.take_changes() == {}


def test_what_enters_and_what_is_evicted_is_told_once() -> None:
    pool = BlockPool(2, 16, prefix_cache=True)
    assert pool.cached_hashes() == []
    cache(pool, 1, 2, 3)
    assert pool.take_changes() == {name(1): False, name(2): True, name(3): True}
    assert pool.take_changes() == {}
    pool.clear_cache()
    assert pool.take_changes() == {name(2): False, name(3): False}


def test_a_block_cached_twice_is_told_once() -> None:
    pool = BlockPool(4, 16, prefix_cache=True)
    pool.cached_hashes()
    cache(pool, 1, 1)
    assert pool.take_changes() == {name(1): True}


@given(steps=st.lists(st.tuples(st.sampled_from(["cache", "tell", "list", "clear"]), st.integers(0, 6)), max_size=40))
def test_a_list_and_all_changes_since_are_what_is_cached(steps: list[tuple[str, int]]) -> None:
    pool = BlockPool(3, 16, prefix_cache=True)
    known = set(pool.cached_hashes())
    for step, number in [*steps, ("tell", 0)]:
        match step:
            case "cache":
                cache(pool, number)
            case "clear":
                pool.clear_cache()
            case "list":
                known = set(pool.cached_hashes())
            case "tell":
                changes = pool.take_changes()
                known = {key for key in known if changes.get(key, True)} | {key for key in changes if changes[key]}
    assert known == set(pool.cached_hashes())


def test_a_short_name_is_the_first_half_of_a_hash() -> None:
    assert short_names([bytes(range(16)), b"\xff" * 16]) == [int.from_bytes(bytes(range(8)), "little"), 2**64 - 1]
    assert short_names([]) == []
