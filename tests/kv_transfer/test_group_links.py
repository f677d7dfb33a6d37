"""Where links over groups listen, and by what secret their ends meet."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.link import LinkError

from .fakes import WAIT_S, Ears, NumpyCache

pytestmark = pytest.mark.slow  # real sockets and real waits

LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


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


class StoreMaker:
    """torch.distributed, but for how a store is made."""

    def __init__(self, make: Any) -> None:
        self.TCPStore = make

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)


def test_a_store_that_takes_long_to_make_holds_up_only_its_own_link() -> None:
    """torch looks up the names of addresses, which may take seconds; ``listen`` is called on an event loop."""
    go_on, ears = threading.Event(), Ears()

    def make(*args: Any, **kwargs: Any) -> Any:
        assert go_on.wait(WAIT_S)
        return torch.distributed.TCPStore(*args, **kwargs)

    slow, links = GlooLinks(NumpyCache(), "127.0.0.1"), GlooLinks(NumpyCache(), "127.0.0.1")
    slow._distributed = StoreMaker(make)
    receiver, ticket = slow.listen(ears)
    assert not go_on.is_set()
    assert listening_addresses() == {"0100007F"}  # the port is the link's already
    sent = Ears()
    sender = links.dial(ticket, sent)
    go_on.set()
    assert (sent.next(), ears.next()) == (("open",), ("open",))
    for link in (sender, receiver):
        link.close()
        assert link.join(WAIT_S)


def test_a_store_that_cannot_be_made_is_reported_and_leaves_nothing_open() -> None:
    def make(*args: Any, master_listen_fd: int, **kwargs: Any) -> Any:
        os.close(master_listen_fd)
        raise RuntimeError("no room for a store")

    links, ears = GlooLinks(NumpyCache(), "127.0.0.1"), Ears()
    links._distributed = StoreMaker(make)
    before = listening_addresses()
    receiver, _ = links.listen(ears)
    kind, reason = ears.next()
    assert (kind, "no room for a store" in str(reason)) == ("error", True)
    assert ears.next() == ("closed",)
    receiver.close()
    assert receiver.join(WAIT_S)
    assert listening_addresses() == before


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
