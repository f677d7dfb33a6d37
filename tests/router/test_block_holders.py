"""Who holds a chain's blocks, what is given up for want of room, and that a closed column costs nobody a long wait."""

from twinpool.router.block_holders import BlockHolders, Level, columns_of


def test_levels_are_nested_and_end_where_nobody_is_left() -> None:
    holders = BlockHolders(100)
    columns = [holders.open() for _ in range(3)]
    for column, num_blocks in zip(columns, (1, 3, 2), strict=True):
        holders.store([10, 11, 12][:num_blocks], column)
    levels = [Level(0b111, 1), Level(0b110, 2), Level(0b010, 3)]
    assert holders.walk([[10, 11, 12, 13]]) == levels
    assert holders.walk([[10, 11, 12]]) == levels
    assert holders.walk([[13, 10]]) == []
    assert holders.walk([[]]) == []


def test_what_was_matched_outlives_what_was_not() -> None:
    holders = BlockHolders(100)
    column = holders.open()
    holders.store(range(100), column)
    holders.store([1000], column)
    assert holders.num_evicted == 1
    assert holders.walk([[50]])
    assert holders.walk([[0]]) == []
    holders.store(range(2000, 2098), column)
    assert holders.walk([[50]])
    assert [key for key in range(100) if holders.walk([[key]])] == [50]
    assert len(holders) == 100
    holders.check()


def test_a_closed_column_counts_for_nothing_at_once_and_opens_again_when_it_is_wiped() -> None:
    holders = BlockHolders(10_000)
    left, stays = holders.open(), holders.open()
    holders.store(range(5000), left)
    holders.store(range(1000), stays)
    holders.close(left)
    assert holders.walk([range(5000)]) == [Level(1 << stays, 1000)]
    assert holders.open() == 2
    for key in range(100_000, 100_100):
        holders.store([key], stays)
        holders.check()
    assert len(holders) == 1100
    assert holders.open() == left
    assert holders.walk([[0]]) == [Level(1 << stays, 1)]


def test_each_change_wipes_no_more_than_it_is_worth() -> None:
    holders = BlockHolders(100_000)
    left, stays = holders.open(), holders.open()
    holders.store(range(50_000), left)
    holders.close(left)
    num_before = len(holders)
    holders.remove([1], stays)
    assert num_before - len(holders) == 260


def test_blocks_of_one_chain_share_one_mask() -> None:
    holders = BlockHolders(1000)
    columns = [holders.open() for _ in range(200)]
    for column in columns:
        holders.store(range(100), column)
    masks = list(holders._young.values())
    assert len({id(mask) for mask in masks}) == 1


def test_columns_of_a_mask_are_those_of_its_bits() -> None:
    assert columns_of(0b1011 | 1 << 900) == [0, 1, 3, 900]
    assert columns_of(0) == []
