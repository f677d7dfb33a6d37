"""The index of prefixes against a set of blocks for each worker: the leading blocks it finds, and what a gap does."""

from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twinpool.router import block_holders
from twinpool.router.prefix_index import PrefixIndex, Resync

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
KEYS = st.integers(0, 30)
BIG = 2**64 - 1


def index_of(**held: list[int]) -> PrefixIndex:
    index = PrefixIndex()
    for worker_id, keys in held.items():
        index.join(worker_id)
        assert index.apply(worker_id, 1, keys, (), cleared=True) is None
    return index


def test_matches_are_told_for_all_workers_in_the_order_asked_for() -> None:
    index = index_of(a=[BIG, BIG - 1], b=[BIG], c=[7])
    assert index.matched([[BIG, BIG - 1, 7]], ("c", "b", "x", "a")).tolist() == [0, 1, 0, 2]


def test_no_worker_and_no_block_match_nothing() -> None:
    index = index_of(a=[1])
    assert index.matched([[1]], ()).tolist() == []
    assert index.matched([[]], ("a",)).tolist() == [0]
    assert PrefixIndex().matched([[1]], ("a",)).tolist() == [0]


def test_a_block_behind_a_missing_one_is_of_no_use() -> None:
    index = index_of(a=[1, 3])
    assert index.matched([[1, 2, 3]], ("a",)).tolist() == [1]


def test_any_of_several_qualities_will_do_for_each_block() -> None:
    index = index_of(a=[1, 12, 13], b=[11, 2])
    assert index.matched([[1, 2, 3], [11, 12, 13]], ("a", "b")).tolist() == [3, 2]


def test_a_worker_counts_as_empty_until_its_full_list_has_come() -> None:
    index = PrefixIndex()
    assert index.join("a") == Resync("a")
    assert index.apply("a", 1, [1], ()) is None  # asked for already
    assert index.matched([[1]], ("a",)).tolist() == [0]
    index.apply("a", 2, [1], (), cleared=True)
    assert index.matched([[1]], ("a",)).tolist() == [1]


def test_a_gap_empties_a_worker_and_asks_for_its_list_once() -> None:
    index = index_of(a=[1, 2], b=[1])
    assert index.apply("a", 3, [9], ()) == Resync("a")
    assert index.apply("a", 4, [9], ()) is None
    assert index.apply("a", 5, [9], [1]) is None
    assert index.matched([[1], [9]], ("a", "b")).tolist() == [0, 1]
    assert index.num_gaps == 1
    assert index.apply("a", 7, [9], ()) == Resync("a")  # the list may have been among what is missing
    assert index.apply("a", 9, [2], (), cleared=True) is None
    assert index.apply("a", 10, [1], [2]) is None
    assert index.matched([[1]], ("a",)).tolist() == [1]
    assert index.matched([[2]], ("a",)).tolist() == [0]


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_a_message_told_twice_or_too_soon_is_a_gap(sequence: int) -> None:
    assert index_of(a=[1]).apply("a", sequence, [2], ()) == Resync("a")


def test_a_worker_that_joins_anew_has_an_empty_cache() -> None:
    index = index_of(a=[1])
    index.join("a")
    assert index.matched([[1]], ("a",)).tolist() == [0]


def test_what_a_lost_worker_still_says_is_ignored() -> None:
    index = index_of(a=[1])
    index.lost("a")
    index.lost("a")
    assert index.apply("a", 2, [2], (), cleared=True) is None
    assert index.matched([[1]], ("a",)).tolist() == [0]
    assert index.matched([[2]], ("a",)).tolist() == [0]


def test_a_thousand_workers_are_told_apart() -> None:
    index, workers = PrefixIndex(), tuple(f"w{number:04}" for number in range(1000))
    for number, worker_id in enumerate(workers):
        index.join(worker_id)
        index.apply(worker_id, 1, list(range(number % 129)), (), cleared=True)
    expected = [number % 129 for number in range(1000)]
    assert index.matched([list(range(128))], workers).tolist() == [min(128, count) for count in expected]


def test_no_more_blocks_are_kept_than_allowed_and_those_given_up_are_counted() -> None:
    index = PrefixIndex(max_blocks=50)
    index.join("a")
    index.apply("a", 1, list(range(120)), (), cleared=True)
    assert index.num_blocks == 50
    assert index.num_evicted == 70
    index.check()


@dataclass
class Told:
    """A worker as the model has it: blocks by key, None while its list is not known."""

    held: set[int] | None = None
    sequence: int = 0
    sent: set[int] = field(default_factory=set)


class AnyHistory(RuleBasedStateMachine):
    """Joins, losses, changes, gaps and full lists in any order, against one set for each worker."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.told: dict[str, Told] = {}

    @rule(worker=st.sampled_from(NAMES))
    def join(self, worker: str) -> None:
        assert self.index.join(worker) == Resync(worker)
        self.told[worker] = Told()

    @rule(worker=st.sampled_from(NAMES))
    def lose(self, worker: str) -> None:
        self.index.lost(worker)
        self.told.pop(worker, None)

    @precondition(lambda self: self.told)
    @rule(data=st.data(), stored=st.sets(KEYS), removed=st.sets(KEYS), skipped=st.sampled_from([0, 0, 0, 1]))
    def change(self, data: st.DataObject, stored: set[int], removed: set[int], skipped: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.told)))
        told = self.told[worker]
        told.sequence += 1 + skipped
        answer = self.index.apply(worker, told.sequence, sorted(stored), sorted(removed - stored))
        assert answer == (Resync(worker) if skipped else None)
        told.held = None if told.held is None or skipped else (told.held - removed) | stored

    @precondition(lambda self: self.told)
    @rule(data=st.data(), stored=st.sets(KEYS))
    def tell_all(self, data: st.DataObject, stored: set[int]) -> None:
        worker = data.draw(st.sampled_from(sorted(self.told)))
        told = self.told[worker]
        told.sequence += 1
        assert self.index.apply(worker, told.sequence, sorted(stored), (), cleared=True) is None
        told.held = set(stored)

    @rule(chain=st.lists(KEYS, unique=True), workers=st.permutations([*NAMES, "never"]))
    def look_up(self, chain: list[int], workers: list[str]) -> None:
        expected = [self.leading(worker, chain) for worker in workers]
        assert np.array_equal(self.index.matched([chain], tuple(workers)), expected)

    def leading(self, worker: str, chain: list[int]) -> int:
        told = self.told.get(worker)
        held = (told.held if told else None) or set()
        return next((place for place, key in enumerate(chain) if key not in held), len(chain))

    @invariant()
    def rules_hold(self) -> None:
        self.index.check()


class AnyHistoryWhileWiping(AnyHistory):
    """The same where closed columns are wiped a few keys at a time, so that many are half wiped."""

    def __init__(self) -> None:
        super().__init__()
        self._usual = block_holders._SWEEP_AT_LEAST
        block_holders._SWEEP_AT_LEAST = 1

    def teardown(self) -> None:
        block_holders._SWEEP_AT_LEAST = self._usual


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(stateful_step_count=25)
TestAnyHistoryWhileWiping = AnyHistoryWhileWiping.TestCase
TestAnyHistoryWhileWiping.settings = settings(stateful_step_count=25)
