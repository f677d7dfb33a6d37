"""What can be done to a memory link, and how it shows."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from twinpool.kv_transfer.memory import MemoryLinks, MemoryReceiveLink, MemorySendLink
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.plan import Span

from .fakes import Ears, NumpyCache, make_group

WHOLE = Span(0, 3, 0, 2)
HERE, THERE = [3, 4], [5, 6]


@dataclass
class Clock:
    """Deadlines that pass on command."""

    due: list[Callable[[], None]] = field(default_factory=list)

    def schedule(self, _delay_s: float, what: Callable[[], None]) -> Callable[[], None]:
        self.due.append(what)
        return lambda: self.due.remove(what) if what in self.due else None

    def expire(self) -> None:
        due, self.due = self.due, []
        for what in due:
            what()


class World:
    def __init__(self, *, sends_digest: bool = True, checks_digest: bool = True) -> None:
        self.clock = Clock()
        self.network = MemoryNetwork(schedule=self.clock.schedule)
        self.here, self.there = NumpyCache(seed=1), NumpyCache(seed=2)
        self.sent, self.received = Ears(), Ears()
        self.sends_digest, self.checks_digest = sends_digest, checks_digest
        self.sender, self.receiver = self.open()

    def open(self) -> tuple[MemorySendLink, MemoryReceiveLink]:
        receiver, ticket = MemoryLinks(self.network, self.there, digest=self.checks_digest).listen(self.received)
        sender = MemoryLinks(self.network, self.here, digest=self.sends_digest).dial(ticket, self.sent)
        self.sent.heard.clear()
        self.received.heard.clear()
        return sender, receiver

    def move(self, *seqs: int) -> None:
        for seq in seqs:
            self.receiver.receive(make_group(seq, WHOLE, THERE, f"r{seq}"))
            self.sender.send(make_group(seq, WHOLE, HERE, f"r{seq}"))

    @property
    def has_arrived(self) -> bool:
        return np.array_equal(self.here.read(WHOLE, HERE), self.there.read(WHOLE, THERE))


def test_a_corrupted_group_is_reported_and_not_written() -> None:
    world = World()
    world.network.inject(Fault.CORRUPT)
    world.move(0)
    assert world.received.heard == [("received", 0, False)]
    assert world.sent.heard == [("sent", 0)]
    assert not world.has_arrived
    world.move(1)
    assert world.received.heard[1:] == [("received", 1, True)]
    assert world.has_arrived


def test_without_digests_damage_passes() -> None:
    world = World(sends_digest=False, checks_digest=False)
    world.network.inject(Fault.CORRUPT)
    world.move(0)
    assert world.received.heard == [("received", 0, True)]


def test_a_receiver_that_checks_refuses_a_sender_that_takes_no_digest() -> None:
    world = World(sends_digest=False)
    world.move(0)
    assert world.received.heard == [("received", 0, False)]


def test_a_dropped_group_times_out_at_both_ends() -> None:
    world = World()
    world.network.inject(Fault.DROP)
    world.move(0)
    assert world.received.heard == world.sent.heard == []
    world.clock.expire()
    world.clock.expire()
    assert [event[0] for event in world.received.heard] == ["error", "closed"]
    assert [event[0] for event in world.sent.heard] == ["error", "closed"]


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.DUPLICATE, Fault.REORDER])
def test_a_group_out_of_order_is_an_error_at_both_ends(fault: Fault) -> None:
    world = World()
    world.network.inject(fault, after=1)
    world.move(0, 1, 2)
    assert world.received.heard[-2][0] == world.sent.heard[-2][0] == "error"
    assert "announced" in str(world.received.heard[-2])


def test_a_mislabelled_group_is_an_error() -> None:
    world = World()
    world.network.inject(Fault.MISLABEL)
    world.move(0)
    assert "announced" in str(world.received.heard[0])
    assert not world.has_arrived


def test_a_delayed_group_comes_when_released_and_all_behind_it_wait() -> None:
    world = World()
    world.network.inject(Fault.DELAY)
    world.move(0, 1)
    assert world.received.heard == []
    world.network.release()
    assert world.received.heard == [("received", 0, True), ("received", 1, True)]
    assert world.sent.heard == [("sent", 0), ("sent", 1)]


def test_a_delay_past_the_deadline_is_an_error() -> None:
    world = World()
    world.network.inject(Fault.DELAY)
    world.move(0)
    world.clock.expire()
    world.clock.expire()
    assert world.received.heard[0][0] == "error"
    world.network.release()
    assert len(world.received.heard) == 2


def test_a_link_that_moves_never_expires() -> None:
    world = World()
    for seq in range(5):
        world.move(seq)
        world.clock.expire()
    assert world.received.heard == [("received", seq, True) for seq in range(5)]


def test_a_closed_link_leaves_nothing_scheduled() -> None:
    world = World()
    world.move(0)
    world.receiver.receive(make_group(1, WHOLE, THERE))
    world.sender.close()
    world.receiver.close()
    assert world.clock.due == []


def test_events_may_post_more_from_within() -> None:
    world = World()
    posted: list[int] = []

    def more(seq: int, digest_ok: bool) -> None:
        posted.append(seq)
        if seq < 3:
            world.move(seq + 1)

    world.received.on_received = more  # type: ignore[method-assign]
    world.move(0)
    assert posted == [0, 1, 2, 3]
