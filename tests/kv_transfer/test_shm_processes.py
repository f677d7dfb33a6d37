"""Links over shared memory between processes that are stopped, go on, or are killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from twinpool.kv_transfer.link import Ticket
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.shm import ShmLinks

from .fakes import WAIT_S, Ears, NumpyCache, make_group

pytestmark = pytest.mark.slow  # processes and real waits

WHOLE = Span(0, 3, 0, 6)
THERE, THEIRS = [1, 2, 5, 8, 20, 11], [9, 3, 4, 0, 7, 30]
FREE = 0xEE  # what a block holds that is somebody else's by now


class Peer:
    """The process of shm_peer.py."""

    def __init__(self, seed: int, *, digest: bool) -> None:
        script = Path(__file__).with_name("shm_peer.py")
        command = [sys.executable, script, str(seed), "digest" if digest else "none"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, *command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> list[object]:
        assert self.process.stdout is not None
        answer: list[object] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, *command: object) -> list[object]:
        self.tell(*command)
        return self.hear()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def start(*, digest: bool = True) -> Peer:
        peers.append(Peer(1, digest=digest))
        return peers[-1]

    yield start
    for peer in peers:
        peer.end()


class Worker:
    """The test's own end."""

    def __init__(self, *, digest: bool = True, timeout_s: float = 0.5) -> None:
        self.cache = NumpyCache(seed=2, shared=True)
        self.links = ShmLinks(self.cache, digest=digest, open_timeout_s=WAIT_S, chunk_timeout_s=timeout_s)

    def is_filled_from(self, seed: int) -> bool:
        """Whether the blocks came from the peer."""
        return np.array_equal(self.cache.read(WHOLE, THERE), NumpyCache(seed=seed).read(WHOLE, THEIRS))


def test_a_killed_source_costs_its_own_link_only(start_peer: Callable[..., Peer]) -> None:
    worker, ears = Worker(timeout_s=WAIT_S), [Ears(), Ears()]
    peers = [start_peer(), start_peer()]
    receivers = []
    for peer, ear in zip(peers, ears, strict=True):
        receiver, ticket = worker.links.listen(ear)
        receivers.append(receiver)
        assert peer.ask("dial", ticket.host, ticket.secret.hex()) == ["open"]
        assert ear.next() == ("open",)
    for receiver in receivers:
        receiver.receive(make_group(0, WHOLE, THERE))
    peers[0].end()
    assert ears[0].next()[0] == "error"
    peers[1].ask("send", 0, 0)
    assert ears[1].next() == ("received", 0, True)
    assert worker.is_filled_from(seed=1)
    for receiver in receivers:
        receiver.close()
        assert receiver.join(WAIT_S)


@pytest.mark.parametrize("digest", [True, False])
def test_a_stopped_source_that_goes_on_writes_nothing_into_blocks_that_were_given_away(
    start_peer: Callable[..., Peer], digest: bool
) -> None:
    worker, ears, peer = Worker(digest=digest), Ears(), start_peer(digest=digest)
    receiver, ticket = worker.links.listen(ears)
    assert peer.ask("dial", ticket.host, ticket.secret.hex()) == ["open"]
    assert ears.next() == ("open",)
    receiver.receive(make_group(0, WHOLE, THERE))
    peer.stop()
    peer.tell("send", 0, 0)  # it reads this when it goes on
    assert "timed out" in str(ears.next()[1])
    receiver.close()
    worker.cache.pool[THERE] = FREE
    peer.go_on()
    assert peer.hear() == ["sending", 0]
    assert peer.ask("hear", 0)[0] == "error"
    assert (worker.cache.pool[THERE] == FREE).all()

    again = Ears()
    fresh, ticket = worker.links.listen(again)  # under the next link epoch
    assert peer.ask("dial", ticket.host, ticket.secret.hex()) == ["open"]
    fresh.receive(make_group(0, WHOLE, THERE))
    assert peer.ask("send", 1, 0) == ["sending", 0]
    assert again.until("received") == ("received", 0, True)
    assert worker.is_filled_from(seed=1)
    for link in (receiver, fresh):
        link.close()
        assert link.join(WAIT_S)


@pytest.mark.parametrize("digest", [True, False])
def test_a_stopped_target_that_goes_on_takes_nothing_from_blocks_that_were_given_away(
    start_peer: Callable[..., Peer], digest: bool
) -> None:
    worker, ears, peer = Worker(digest=digest), Ears(), start_peer(digest=digest)
    host, secret = peer.ask("listen")
    sender = worker.links.dial(Ticket(str(host), 0, bytes.fromhex(str(secret))), ears)
    assert ears.next() == ("open",)
    assert peer.ask("hear", 0) == ["open"]
    assert peer.ask("receive", 0, 0) == ["receiving", 0]
    peer.stop()
    sender.send(make_group(0, WHOLE, THERE))
    assert "timed out" in str(ears.next()[1])
    sender.close()
    worker.cache.pool[THERE] = FREE
    peer.go_on()
    assert peer.ask("hear", 0)[0] == "error"
    assert sender.join(WAIT_S)


def test_a_killed_target_is_noticed_and_what_it_mapped_is_the_sources_alone(start_peer: Callable[..., Peer]) -> None:
    worker, ears, peer = Worker(timeout_s=WAIT_S), Ears(), start_peer()
    host, secret = peer.ask("listen")
    sender = worker.links.dial(Ticket(str(host), 0, bytes.fromhex(str(secret))), ears)
    assert ears.next() == ("open",)
    sender.send(make_group(0, WHOLE, THERE))
    before = worker.cache.pool.copy()
    peer.end()
    assert ears.next()[0] == "error"
    assert np.array_equal(worker.cache.pool, before)
    sender.close()
    assert sender.join(WAIT_S)
