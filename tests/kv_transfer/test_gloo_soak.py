"""Blocks of 128 KiB and more, moved without staging between processes that are stopped, killed and closed at random.

What was delivered is what was sent, byte for byte; what was taken back is not written; the rest is left alone.
"""

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from twinpool.kv_transfer.gloo import CUT
from twinpool.kv_transfer.plan import Span

from .conformance_kinds import LARGE_LAYOUT, Setting
from .conformance_worker import LocalWorker, RemoteWorker
from .fakes import NumpyCache

KIND = "gloo-large"
NUM_BLOCKS = 32
WHOLE = Span(0, 3, 0, NUM_BLOCKS)
TAKEN = 0x55  # what a block holds that is somebody else's by now
CHUNK_TIMEOUT_S = 1.0
NUM_GROUPS = 4
NUM_ROUNDS = 4
SOAK_S = 100.0  # for each of two


@dataclass(frozen=True)
class Moved:
    """A group of one round: blocks ``here`` go to blocks ``there``, which no other group of the round names."""

    seq: int
    span: Span
    here: list[int]
    there: list[int]

    def is_in(self, source: np.ndarray, target: np.ndarray) -> bool:
        layers = slice(self.span.first_layer, self.span.end_layer)
        return bool((source[self.here, layers] == target[self.there, layers]).all())


def draw_groups(rng: random.Random) -> list[Moved]:
    there = rng.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    groups = []
    for seq in range(NUM_GROUPS):
        num_blocks = rng.randint(1, NUM_BLOCKS // NUM_GROUPS)
        first_layer, first_block = rng.randrange(3), rng.randrange(20)
        span = Span(first_layer, rng.randint(first_layer + 1, 3), first_block, first_block + num_blocks)
        named = [there.pop() for _ in range(num_blocks)]
        groups.append(Moved(seq, span, [rng.randrange(NUM_BLOCKS) for _ in range(num_blocks)], named))
    return groups


@dataclass
class Soak:
    """Rounds of one link each. One of the two workers is a process of its own, to which something happens."""

    rng: random.Random
    apart: str  # "source" or "target"
    remote: RemoteWorker = field(init=False)
    num_delivered: int = 0
    num_lost: int = 0

    def __post_init__(self) -> None:
        self.remote = RemoteWorker(KIND)
        self.at_first = [NumpyCache(seed=index, layout=LARGE_LAYOUT).pool for index in range(2)]

    def play(self, *, calm: bool = False) -> None:
        """One round; ``calm``: nothing happens before all has arrived."""
        index = 1 if self.apart == "target" else 0
        self.remote.settle(Setting(index, 20.0, CHUNK_TIMEOUT_S))
        local = LocalWorker(KIND, Setting(1 - index, 20.0, CHUNK_TIMEOUT_S))
        source, target = (self.remote, local) if index == 0 else (local, self.remote)
        there, ticket = target.listen()
        here = source.dial(ticket)
        assert (source.next(here), target.next(there)) == (("open",), ("open",))
        groups = draw_groups(self.rng)
        for group in groups:
            target.receive(there, group.seq, group.span, group.there)
            source.send(here, group.seq, group.span, group.here)
        for _ in groups if calm else ():
            target.until(there, "received")
        try:
            if index == 0:
                self.disturb_the_target(local, here, there, groups)
            else:
                self.disturb_the_source(local, here, there, groups)
        finally:
            local.close_all()

    def disturb_the_target(self, local: LocalWorker, here: int, there: int, groups: list[Moved]) -> None:
        """The link is closed here while its source runs, is stopped or is killed; its blocks are used again at once."""
        what = self.hit_the_remote()
        local.close(there)
        delivered = self.delivered(local.heard(there), groups)
        for group in groups:
            assert group not in delivered or group.is_in(self.at_first[0], local.cache.pool)
        expected = local.cache.pool.copy()
        for group in groups:
            local.fill(group.there, TAKEN)
            expected[group.there] = TAKEN
        touched = [block for group in groups for block in group.there]
        others = [block for block in range(NUM_BLOCKS) if block not in touched]
        expected[others] = self.at_first[1][others]
        self.let_the_remote_go_on(what, here)
        assert local.join(there)
        assert (local.cache.pool == expected).all(), "a block was written that this end had taken back, or never named"

    def disturb_the_source(self, local: LocalWorker, here: int, there: int, groups: list[Moved]) -> None:
        """The link is closed here while its target runs, is stopped or is killed; its blocks are written at once."""
        what = self.hit_the_remote()
        local.close(here)
        local.fill(list(range(NUM_BLOCKS)), TAKEN)
        if self.let_the_remote_go_on(what, there):
            pool = self.fetch()
            for group in self.delivered(self.remote.heard(there), groups):
                assert group.is_in(self.at_first[0], pool), "what was sent after close passed for KV"
        assert local.join(here)

    def fetch(self) -> np.ndarray:
        """The remote worker's pool."""
        data: str = self.remote.contents()
        return np.frombuffer(bytes.fromhex(data), dtype=np.uint8).reshape(self.at_first[1].shape)

    def hit_the_remote(self) -> signal.Signals | None:
        time.sleep(self.rng.random() * 0.02)
        what = self.rng.choice([None, None, signal.SIGSTOP, signal.SIGSTOP, signal.SIGKILL])
        if what is not None:
            self.remote.signal(what)
            if self.rng.random() < 0.5:
                time.sleep(self.rng.random() * 0.05)
            elif self.rng.random() < 0.2:
                time.sleep(1.2 * CHUNK_TIMEOUT_S)
        return what

    def let_the_remote_go_on(self, what: signal.Signals | None, end: int) -> bool:
        """Wait for its end of the link to be over; whether it lives."""
        if what == signal.SIGKILL:
            self.remote.end()
            self.remote = RemoteWorker(KIND)
            return False
        if what == signal.SIGSTOP:
            time.sleep(self.rng.random() * 0.02)
            self.remote.signal(signal.SIGCONT)
        self.remote.close(end)
        return bool(self.remote.join(end))

    def delivered(self, heard: list[Any], groups: list[Moved]) -> list[Moved]:
        found = [groups[event[1]] for event in heard if event[0] == "received" and event[2]]
        assert not any(event[0] == "received" and not event[2] for event in heard), "nothing was damaged"
        self.num_delivered += len(found)
        self.num_lost += len(groups) - len(found)
        return found


@pytest.fixture(params=["source", "target"])
def soak(request: pytest.FixtureRequest) -> Iterator[Soak]:
    made = Soak(random.Random(f"gloo {request.param}"), request.param)
    yield made
    made.remote.end()


@pytest.mark.slow
def test_no_block_is_written_that_was_taken_back_and_no_byte_is_changed(soak: Soak) -> None:
    assert CUT.is_direct(Span(0, 1, 0, 1), LARGE_LAYOUT)
    for number in range(NUM_ROUNDS):
        soak.play(calm=number == 0)
    assert soak.num_delivered >= (NUM_GROUPS if soak.apart == "source" else 0)


@pytest.mark.soak
def test_no_block_is_written_that_was_taken_back_for_minutes(soak: Soak) -> None:
    ends_at = time.monotonic() + SOAK_S
    while time.monotonic() < ends_at:
        soak.play()
    assert soak.num_delivered, "every group was lost"
    assert soak.num_lost, "no group was disturbed"
