"""Blocks that gloo sends from and receives into are left alone from the moment that ``close`` returns."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from twinpool.kv_transfer.chunk import new_header
from twinpool.kv_transfer.gloo import CUT, GlooLinks
from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout

from .fakes import WAIT_S, Ears, NumpyCache, make_group

pytestmark = pytest.mark.slow  # real sockets, and megabytes on them

LAYOUT = KVLayout(
    model="m", num_layers=4, num_kv_heads=4, head_dim=64, block_tokens=256, dtype="float32"
)  # 2 MiB a block
NUM_BLOCKS = 24
OLD, NEW, EMPTY = 1, 7, 0
WHOLE = Span(0, 4, 0, NUM_BLOCKS)
IDS = list(range(NUM_BLOCKS))


class OpenLink:
    """A link between two pools, of which the source's holds OLD and the target's EMPTY."""

    def __init__(self, *, chunk_timeout_s: float = 1.0) -> None:
        self.caches = [NumpyCache(NUM_BLOCKS, layout=LAYOUT, shared=True) for _ in range(2)]
        for cache, value in zip(self.caches, (OLD, EMPTY), strict=True):
            cache.pool[:] = value
        links = [GlooLinks(cache, "127.0.0.1", chunk_timeout_s=chunk_timeout_s) for cache in self.caches]
        self.sent, self.received = Ears(), Ears()
        self.receiver, ticket = links[1].listen(self.received)
        self.sender = links[0].dial(ticket, self.sent)
        assert (self.sent.next(), self.received.next()) == (("open",), ("open",))

    def end(self) -> None:
        for end in (self.sender, self.receiver):
            end.close()
            assert end.join(WAIT_S)


@pytest.fixture
def link() -> Iterator[OpenLink]:
    opened = OpenLink()
    yield opened
    opened.end()


def wait_for_first_byte(pool: np.ndarray) -> None:
    deadline = threading.Event()
    for _ in range(int(WAIT_S / 1e-4)):
        if pool[0].any():
            return
        deadline.wait(1e-4)
    raise AssertionError("nothing arrives")


def test_long_blocks_need_no_staging_memory(link: OpenLink) -> None:
    assert CUT.is_direct(WHOLE, LAYOUT)
    link.receiver.receive(make_group(0, WHOLE, IDS))
    link.sender.send(make_group(0, WHOLE, IDS[::-1]))
    assert (link.sent.next(), link.received.next()) == (("sent", 0), ("received", 0, True))
    assert (link.caches[1].pool == OLD).all()
    assert link.sender._slots == link.receiver._slots == []


def test_nothing_that_is_written_after_the_source_closed_is_sent(link: OpenLink) -> None:
    for seq in range(3):
        link.receiver.receive(make_group(seq, WHOLE, IDS))
        link.sender.send(make_group(seq, WHOLE, IDS))
    wait_for_first_byte(link.caches[1].pool)
    link.sender.close()
    link.caches[0].pool[:] = NEW
    link.end()
    assert not (link.caches[1].pool == NEW).any()


def test_nothing_lands_in_blocks_after_the_target_closed(link: OpenLink) -> None:
    for seq in range(3):
        link.receiver.receive(make_group(seq, WHOLE, IDS))
        link.sender.send(make_group(seq, WHOLE, IDS))
    wait_for_first_byte(link.caches[1].pool)
    link.receiver.close()
    link.caches[1].pool[:] = NEW
    link.end()
    assert (link.caches[1].pool == NEW).all()


def test_a_wire_that_was_closed_writes_nothing_whoever_still_holds_its_messages(link: OpenLink) -> None:
    """A thread that leaves a wait by an error holds them until that is dealt with, which may be after ``close``."""
    parts = [np.zeros(1 << 18, dtype=np.uint8) for _ in range(4)]
    there, here = link.receiver._wire, link.sender._wire
    assert there is not None
    assert here is not None
    held = there.receive(0, new_header(), parts, lambda _: None)
    there.close()
    with pytest.raises(LinkError):
        here.send(0, new_header(), [np.ones(1 << 18, dtype=np.uint8) for _ in parts])()
    assert not any(part.any() for part in parts)
    del held


def test_a_receive_that_nobody_fills_is_let_go_of_at_once() -> None:
    """Not at its deadline, which is farther off than the test waits."""
    link = OpenLink(chunk_timeout_s=10 * WAIT_S)
    link.receiver.receive(make_group(0, WHOLE, IDS))
    while not link.receiver._num_direct:
        pass
    link.end()
