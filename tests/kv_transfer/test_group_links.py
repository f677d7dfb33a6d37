"""Where links over groups listen, and by what secret their ends meet."""

from pathlib import Path

import pytest

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
