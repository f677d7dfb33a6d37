"""What is shared memory's own: who may enter."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from twinpool.kv_transfer import pull_socket
from twinpool.kv_transfer.link import LinkError, Ticket
from twinpool.kv_transfer.shm import ShmLinks, host_identity

from .fakes import WAIT_S, Ears, NumpyCache, make_group
from .shm_hands import THERE, TIMEOUT_S, WHOLE, HandSource, Target

pytestmark = pytest.mark.slow  # real sockets and real waits


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


def test_a_stranger_is_hung_up_on_and_the_source_still_gets_in(target: Target) -> None:
    source = NumpyCache(seed=1, shared=True)
    with HandSource(replace(target.ticket, secret=b"\0" * 16), source.memory.fd) as stranger:
        assert stranger.socket.recv(100) == b""
    ears = Ears()
    sender = ShmLinks(source).dial(target.ticket, ears)
    assert ears.next() == ("open",)
    assert target.ears.next() == ("open",)
    sender.close()
    assert sender.join(WAIT_S)


def test_a_ticket_is_good_once(target: Target) -> None:
    source, first, second = NumpyCache(seed=1, shared=True), Ears(), Ears()
    links = ShmLinks(source, open_timeout_s=TIMEOUT_S)
    sender = links.dial(target.ticket, first)
    assert first.next() == ("open",)
    again = links.dial(target.ticket, second)
    assert "cannot reach the target" in str(second.next()[1])
    for link in (sender, again):
        link.close()
        assert link.join(WAIT_S)


def test_a_source_without_a_pool_is_hung_up_on(target: Target) -> None:
    with HandSource(target.ticket, None) as source:
        assert source.socket.recv(100) == b""
    assert "the source did not come" in target.error()


def test_another_user_does_not_enter(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_socket.os, "geteuid", lambda: 4_000_000)  # as if everybody else were another
    with HandSource(target.ticket, target.cache.memory.fd) as source:
        assert source.is_hung_up_on
    ears = Ears()
    sender = ShmLinks(target.cache).dial(target.ticket, ears)
    assert "another user" in str(ears.next()[1])
    assert sender.join(WAIT_S)
    assert "the source did not come" in target.error()


def test_nothing_is_named_in_a_file_system(target: Target) -> None:
    assert re.fullmatch(r"twinpool-[0-9a-f]{32}", target.ticket.host)
    names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
    assert f"@{target.ticket.host}" in names
    target.close()
    names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
    assert f"@{target.ticket.host}" not in names


def test_closing_wakes_an_end_that_waits_for_the_other() -> None:
    ears = Ears()
    links = ShmLinks(NumpyCache(shared=True), open_timeout_s=1000 * WAIT_S, chunk_timeout_s=1000 * WAIT_S)
    receiver, _ = links.listen(ears)
    receiver.close()
    assert ears.next() == ("closed",)
    receiver, ticket = links.listen(ears)
    sender = links.dial(ticket, Ears())
    assert ears.next() == ("open",)
    receiver.receive(make_group(0, WHOLE, THERE))
    receiver.close()
    assert ears.next() == ("closed",)
    sender.close()
    assert sender.join(WAIT_S)
    assert receiver.join(WAIT_S)


def test_memory_that_cannot_be_shared_gives_no_links() -> None:
    with pytest.raises(ValueError, match="memory that can be shared"):
        ShmLinks(NumpyCache())


def test_a_machine_that_allows_no_socket_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    links, ears = ShmLinks(NumpyCache(shared=True)), Ears()
    monkeypatch.setattr(pull_socket.socket, "socket", refuse)
    with pytest.raises(LinkError, match=r"no Unix socket: .*not permitted"):
        links.listen(Ears())
    sender = links.dial(Ticket("twinpool-" + "0" * 32, 0, b"\0" * 16), ears)
    assert "no Unix socket" in str(ears.next()[1])
    assert ears.next() == ("closed",)
    assert sender.join(WAIT_S)


def test_a_worker_knows_its_host() -> None:
    assert host_identity() == host_identity() != ""
