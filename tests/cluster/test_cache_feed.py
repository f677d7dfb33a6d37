"""What gateways are told of a prefix cache: all of it, in messages of a bounded size, or a gap that they notice."""

import asyncio

import hypothesis.strategies as st
from hypothesis import given

from twinpool.cluster.cache_feed import MAX_NAMES, MAX_WAITING, CacheFeed
from twinpool.cluster.outbox import Outbox
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.prefix_index import PrefixIndex, Resync


def told(feed: CacheFeed) -> list[pb.CacheEvents]:
    messages = []
    while feed.has_news:
        message = pb.CacheEvents()
        feed.fill(message)
        messages.append(message)
    return messages


def apply_all(index: PrefixIndex, messages: list[pb.CacheEvents]) -> list[Resync]:
    answers = [
        index.apply("w", message.sequence, message.stored[:], message.removed[:], cleared=message.cleared)
        for message in messages
    ]
    return [answer for answer in answers if answer is not None]


def holds(index: PrefixIndex, name: int) -> bool:
    return index.matched([[name]], ("w",)).tolist() == [1]


def joined() -> PrefixIndex:
    index = PrefixIndex()
    index.join("w")
    return index


def test_an_empty_list_is_told_too() -> None:
    feed = CacheFeed()
    assert told(feed) == []
    feed.begin([])
    (message,) = told(feed)
    assert (message.sequence, message.cleared, len(message.stored)) == (1, True, 0)


def test_changes_before_the_list_are_in_it_and_not_told() -> None:
    feed = CacheFeed()
    feed.change({1: True})
    assert not feed.has_news


def test_a_long_list_goes_in_several_messages_and_changes_after_it() -> None:
    feed = CacheFeed()
    num_names = 2 * MAX_NAMES + 1
    feed.begin(list(range(num_names)))
    feed.change({0: False, num_names: True})
    messages = told(feed)
    assert [len(message.stored) for message in messages] == [MAX_NAMES, MAX_NAMES, 1, 1]
    assert [message.cleared for message in messages] == [True, False, False, False]
    index = joined()
    assert apply_all(index, messages) == []
    assert index.num_blocks == num_names
    assert not holds(index, 0)
    assert holds(index, num_names)


def test_many_changes_go_in_several_messages() -> None:
    feed = CacheFeed()
    feed.begin([])
    feed.change(dict.fromkeys(range(MAX_NAMES + 1), True))
    assert [len(message.stored) for message in told(feed)] == [0, MAX_NAMES, 1]
    assert not feed.has_news


def test_too_many_waiting_changes_are_a_gap_that_the_index_sees_and_a_list_mends() -> None:
    feed, index = CacheFeed(), joined()
    feed.begin([1])
    assert apply_all(index, told(feed)) == []
    feed.change(dict.fromkeys(range(MAX_WAITING + 1), True))
    feed.change({7: False})
    messages = told(feed)
    assert len(messages) == 1
    assert apply_all(index, messages) == [Resync("w")]
    assert not holds(index, 1)
    feed.begin([2])
    assert apply_all(index, told(feed)) == []
    assert holds(index, 2)


def test_an_overflow_before_the_list_was_told_is_seen_too() -> None:
    feed, index = CacheFeed(), joined()
    feed.begin([1])
    feed.change(dict.fromkeys(range(MAX_WAITING + 1), True))
    assert apply_all(index, told(feed)) == [Resync("w")]


def test_of_a_name_that_changes_often_the_newest_word_is_told() -> None:
    feed = CacheFeed()
    feed.begin([])
    told(feed)
    for number in range(MAX_WAITING + 10):
        feed.change({1: bool(number % 2)})
    (message,) = told(feed)
    assert (list(message.stored), list(message.removed)) == ([1], [])


@given(
    steps=st.lists(
        st.one_of(
            st.dictionaries(st.integers(0, 9), st.booleans(), max_size=4), st.sampled_from(["list", "read", "drop"])
        ),
        max_size=30,
    )
)
def test_a_gateway_that_reads_to_the_end_knows_what_is_cached(steps: list[dict[int, bool] | str]) -> None:
    feed, index = CacheFeed(), joined()
    held: set[int] = set()
    feed.begin([])
    for step in steps:
        if isinstance(step, dict):
            held = {name for name in held if step.get(name, True)} | {name for name in step if step[name]}
            feed.change(step)
        elif step == "list":
            feed.begin(list(held))
        elif step == "drop" and feed.has_news:
            feed.fill(pb.CacheEvents())
        elif apply_all(index, told(feed)):
            feed.begin(list(held))
    feed.change({100: True})
    if apply_all(index, told(feed)):
        feed.begin([*held, 100])
        assert apply_all(index, told(feed)) == []
    assert [name for name in range(10) if holds(index, name)] == sorted(held)


def test_an_outbox_tells_its_cache_with_what_else_it_has_and_wakes_for_it_alone() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        outbox.list_cache([1])
        outbox.change_cache({2: True})  # nobody asked
        outbox.follow_cache()
        outbox.list_cache(list(range(MAX_NAMES + 1)))
        outbox.set_view(pb.WorkerView(version=3))
        async with asyncio.timeout(1):
            first, second = await outbox.take(), await outbox.take()
        assert (first.view.version, len(first.cache.stored), first.cache.sequence) == (3, MAX_NAMES, 1)
        assert (second.HasField("view"), len(second.cache.stored), second.cache.sequence) == (False, 1, 2)
        outbox.change_cache({5: False})
        async with asyncio.timeout(1):
            third = await outbox.take()
        assert list(third.cache.removed) == [5]
        outbox.set_view(pb.WorkerView(version=4))
        async with asyncio.timeout(1):
            assert not (await outbox.take()).HasField("cache")

    asyncio.run(scenario())
