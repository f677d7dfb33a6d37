"""What is gloo's own: where it listens, and peers in other processes that die or hang."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.link import LinkError, ReceiveLink
from twinpool.kv_transfer.plan import Span

from .fakes import WAIT_S, Ears, NumpyCache, make_group

pytestmark = pytest.mark.slow  # real sockets and real waits

WHOLE = Span(0, 3, 0, 6)
HERE, THERE = [9, 3, 4, 0, 7, 30], [1, 2, 5, 8, 20, 11]
LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


class Peer:
    """The process of gloo_peer.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("gloo_peer.py")
        self.process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *command: object) -> list[object]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        answer: list[object] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def peer() -> Iterator[Peer]:
    started = Peer()
    yield started
    started.end()


def listening_addresses() -> set[str]:
    """Local addresses, in the kernel's hexadecimal, on which this process listens."""
    links = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes}


def test_nothing_listens_beyond_the_interface() -> None:
    links = GlooLinks(NumpyCache(), "127.0.0.1")
    sent, received = Ears(), Ears()
    receiver, ticket = links.listen(received)
    assert listening_addresses() <= LOOPBACK
    sender = links.dial(ticket, sent)
    assert (sent.next(), received.next()) == (("open",), ("open",))
    assert listening_addresses()
    assert listening_addresses() <= LOOPBACK
    for link in (sender, receiver):
        link.close()
    assert sender.join(WAIT_S)
    assert receiver.join(WAIT_S)
    assert not listening_addresses()


def test_every_link_has_a_secret_of_its_own() -> None:
    links = GlooLinks(NumpyCache(), "127.0.0.1", open_timeout_s=0.1)
    opened = [links.listen(Ears()) for _ in range(3)]
    assert len({ticket.secret for _, ticket in opened}) == 3
    assert all(len(ticket.secret) == 16 for _, ticket in opened)
    for link, _ in opened:
        link.close()
        assert link.join(WAIT_S)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", ""])
def test_an_interface_is_one_address(host: str) -> None:
    with pytest.raises(ValueError, match=r"address|interface"):
        GlooLinks(NumpyCache(), host)


def test_listening_on_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LinkError, match=r"cannot listen on 192\.0\.2\.1"):
        GlooLinks(NumpyCache(), "192.0.2.1").listen(Ears())


@pytest.mark.slow
def test_a_stalled_or_killed_process_costs_its_own_link_only(peer: Peer) -> None:
    cache = NumpyCache(seed=2)
    links = GlooLinks(cache, "127.0.0.1", open_timeout_s=WAIT_S, chunk_timeout_s=1.0)
    ears = [Ears(), Ears(), Ears()]
    receivers: list[ReceiveLink] = []
    for ear in ears[:2]:
        receiver, ticket = links.listen(ear)
        receivers.append(receiver)
        assert peer.ask("dial", ticket.host, ticket.port, ticket.secret.hex()) == ["open"]
        assert ear.next() == ("open",)
    receivers[0].receive(make_group(0, WHOLE, THERE))
    assert peer.ask("send", 0, 0) == ["sent", 0]
    assert ears[0].next() == ("received", 0, True)
    assert np.array_equal(cache.read(WHOLE, THERE), NumpyCache(seed=1).read(WHOLE, HERE))

    peer.process.send_signal(signal.SIGSTOP)
    receivers[0].receive(make_group(1, WHOLE, THERE))
    assert "Timed out" in str(ears[0].next())
    peer.process.kill()
    receivers[1].receive(make_group(0, WHOLE, THERE))
    kind, reason = ears[1].next()
    assert kind == "error"
    assert str(reason).startswith(("Read error", "Connection closed"))

    receiver, ticket = links.listen(ears[2])
    here = Ears()
    sender = GlooLinks(NumpyCache(seed=1), "127.0.0.1").dial(ticket, here)
    receiver.receive(make_group(0, WHOLE, THERE))
    sender.send(make_group(0, WHOLE, HERE))
    assert ears[2].until("received") == ("received", 0, True)
    for link in (sender, receiver, *receivers):
        link.close()
        assert link.join(WAIT_S)
