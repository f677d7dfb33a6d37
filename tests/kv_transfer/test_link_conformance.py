"""What every kind of link must do, whatever moves the bytes."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.link import Links, ReceiveLink, SendLink, Ticket
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import MemoryNetwork
from twinpool.kv_transfer.plan import Span

from .fakes import WAIT_S, Ears, NumpyCache, make_group, wait_until

pytestmark = pytest.mark.slow  # real sockets and real waits

TIMEOUT_S = 0.3
WHOLE = Span(0, 3, 0, 6)
HERE, THERE = [9, 3, 4, 0, 7, 30], [1, 2, 5, 8, 20, 11]


@dataclass
class World:
    """A source and a target worker, with a link kind between them."""

    source_cache: NumpyCache
    target_cache: NumpyCache
    source: Links
    target: Links


@dataclass
class Opened:
    sender: SendLink
    receiver: ReceiveLink
    sent: Ears
    received: Ears

    def close(self) -> None:
        for link in (self.sender, self.receiver):
            link.close()
        for link in (self.sender, self.receiver):
            assert link.join(WAIT_S)


def gloo_world(here: NumpyCache, there: NumpyCache) -> World:
    def links(cache: NumpyCache) -> GlooLinks:
        return GlooLinks(
            cache, "127.0.0.1", open_timeout_s=TIMEOUT_S, chunk_timeout_s=TIMEOUT_S, chunk_bytes=2 * 3 * 512 + 100
        )

    return World(here, there, links(here), links(there))


def memory_world(here: NumpyCache, there: NumpyCache) -> World:
    network = MemoryNetwork(timeout_s=TIMEOUT_S)
    return World(here, there, MemoryLinks(network, here), MemoryLinks(network, there))


@pytest.fixture(params=[gloo_world, memory_world], ids=["gloo", "memory"])
def world(request: pytest.FixtureRequest) -> World:
    make: Callable[[NumpyCache, NumpyCache], World] = request.param
    return make(NumpyCache(seed=1), NumpyCache(seed=2))


def open_link(world: World) -> Opened:
    sent, received = Ears(), Ears()
    receiver, ticket = world.target.listen(received)
    sender = world.source.dial(ticket, sent)
    assert sent.next() == ("open",)
    assert received.next() == ("open",)
    return Opened(sender, receiver, sent, received)


@pytest.fixture
def link(world: World) -> Iterator[Opened]:
    opened = open_link(world)
    yield opened
    opened.close()


def num_open_files() -> int:
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))


def num_threads() -> int:
    """Of this process, those that libraries started included."""
    return len(list(Path(f"/proc/{os.getpid()}/task").iterdir()))


def test_a_group_arrives_in_the_named_blocks_and_nowhere_else(world: World, link: Opened) -> None:
    before = world.target_cache.pool.copy()
    span = Span(1, 3, 2, 6)
    link.receiver.receive(make_group(0, span, THERE[2:]))
    link.sender.send(make_group(0, span, HERE[2:]))
    assert link.sent.next() == ("sent", 0)
    assert link.received.next() == ("received", 0, True)
    before[THERE[2:], 1:3] = world.source_cache.read(span, HERE[2:])
    assert np.array_equal(world.target_cache.pool, before)


def test_groups_of_many_handoffs_arrive_in_the_order_of_their_announcement(world: World, link: Opened) -> None:
    groups = [(seq, f"request-{seq % 5}", Span(seq % 3, 3, seq % 6, 6)) for seq in range(40)]
    for seq, request_id, span in groups:
        link.receiver.receive(make_group(seq, span, THERE[span.first_block :], request_id))
    for seq, request_id, span in groups:
        link.sender.send(make_group(seq, span, HERE[span.first_block :], request_id))
    assert [link.sent.next() for _ in groups] == [("sent", seq) for seq, _, _ in groups]
    assert [link.received.next() for _ in groups] == [("received", seq, True) for seq, _, _ in groups]
    assert np.array_equal(world.target_cache.read(WHOLE, THERE), world.source_cache.read(WHOLE, HERE))


def test_a_group_may_be_sent_before_its_receive_is_posted(link: Opened) -> None:
    link.sender.send(make_group(0, WHOLE, HERE))
    link.receiver.receive(make_group(0, WHOLE, THERE))
    assert link.sent.next() == ("sent", 0)
    assert link.received.next() == ("received", 0, True)


def test_a_discarded_group_is_received_and_touches_no_block(world: World, link: Opened) -> None:
    before = world.target_cache.pool.copy()
    link.receiver.receive(make_group(0, WHOLE, None))
    link.sender.send(make_group(0, WHOLE, HERE))
    assert link.received.next() == ("received", 0, True)
    assert np.array_equal(world.target_cache.pool, before)


def test_a_group_that_nobody_receives_fails_by_the_deadline(link: Opened) -> None:
    link.sender.send(make_group(0, WHOLE, HERE))
    assert link.sent.next()[0] == "error"
    assert link.received.heard == [("open",)] or link.received.until("error")


def test_a_receive_that_nobody_fills_fails_by_the_deadline(link: Opened) -> None:
    link.receiver.receive(make_group(0, WHOLE, THERE))
    assert link.received.next()[0] == "error"


@pytest.mark.parametrize(("request_id", "epoch"), [("other", 1), ("r", 2)])
def test_a_group_of_another_handoff_poisons_the_link_and_is_not_written(
    world: World, link: Opened, request_id: str, epoch: int
) -> None:
    before = world.target_cache.pool.copy()
    link.receiver.receive(make_group(0, WHOLE, THERE))
    link.sender.send(make_group(0, WHOLE, HERE, request_id, epoch))
    assert "announced" in str(link.received.until("error"))
    assert np.array_equal(world.target_cache.pool, before)
    link.receiver.receive(make_group(1, WHOLE, THERE))
    link.sender.send(make_group(1, WHOLE, HERE))
    assert link.received.next() == ("closed",)
    assert np.array_equal(world.target_cache.pool, before)


def test_closing_one_end_wakes_the_other(link: Opened) -> None:
    link.receiver.receive(make_group(0, WHOLE, THERE))
    link.sender.close()
    assert link.sent.next() == ("closed",)
    assert link.received.next()[0] == "error"


def test_after_close_only_closed_is_reported(link: Opened) -> None:
    link.receiver.receive(make_group(0, WHOLE, THERE))
    link.receiver.close()
    link.sender.close()
    assert link.received.next() == ("closed",)
    link.receiver.close()
    assert link.receiver.join(WAIT_S)
    assert link.received.heard == [("open",), ("closed",)]


def test_a_target_whose_source_never_comes_fails_by_the_deadline(world: World) -> None:
    ears = Ears()
    receiver, _ = world.target.listen(ears)
    assert ears.next()[0] == "error"
    assert ears.next() == ("closed",)
    assert receiver.join(WAIT_S)


def test_a_source_with_a_ticket_that_nobody_holds_fails_by_the_deadline(world: World) -> None:
    ears = Ears()
    sender = world.source.dial(Ticket("127.0.0.1", 9, b"\0" * 16), ears)
    assert ears.next()[0] == "error"
    assert ears.next() == ("closed",)
    assert sender.join(WAIT_S)


def test_a_source_with_a_wrong_secret_meets_nobody(world: World) -> None:
    there, here = Ears(), Ears()
    receiver, ticket = world.target.listen(there)
    sender = world.source.dial(Ticket(ticket.host, ticket.port, b"\0" * 16), here)
    assert here.next()[0] == "error"
    assert there.next()[0] == "error"
    assert sender.join(WAIT_S)
    assert receiver.join(WAIT_S)


def test_a_new_link_works_beside_a_poisoned_one(world: World, link: Opened) -> None:
    link.receiver.receive(make_group(0, WHOLE, THERE))
    assert link.received.next()[0] == "error"
    fresh = open_link(world)
    fresh.receiver.receive(make_group(0, WHOLE, THERE))
    fresh.sender.send(make_group(0, WHOLE, HERE))
    assert fresh.received.next() == ("received", 0, True)
    fresh.close()


def test_links_leave_no_descriptor_and_no_thread_behind(world: World) -> None:
    open_link(world).close()  # what a process pays once
    wait_until(lambda: not any(thread.name.startswith("link-") for thread in threading.enumerate()))
    files_before, threads_before = num_open_files(), num_threads()
    for _ in range(4):
        opened = open_link(world)
        opened.receiver.receive(make_group(0, WHOLE, THERE))
        opened.sender.send(make_group(0, WHOLE, HERE))
        opened.received.until("received")
        opened.close()
    poisoned = open_link(world)
    poisoned.receiver.receive(make_group(0, WHOLE, THERE))
    poisoned.received.until("error")
    poisoned.close()
    wait_until(lambda: num_open_files() <= files_before and num_threads() <= threads_before)
