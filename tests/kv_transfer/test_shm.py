"""What is shared memory's own: who may enter, and sources that err or lie."""

import fcntl
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twinpool.kv_transfer import pull_socket, shm
from twinpool.kv_transfer.header import HEADER_BYTES, ChunkHeader, data_digest, handoff_id, pack_header
from twinpool.kv_transfer.link import LinkError, ReceiveLink, Ticket
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.shm import SharedMemory, ShmLinks, host_identity
from twinpool.model.host_pool import SEALS, HostPool

from .fakes import LAYOUT, WAIT_S, Ears, NumpyCache, make_group, wait_until

pytestmark = pytest.mark.slow  # real sockets and real waits

TIMEOUT_S = 0.3
WHOLE = Span(0, 3, 0, 6)
HERE, THERE = [9, 3, 4, 0, 7, 30], [1, 2, 5, 8, 20, 11]
GREETING = b"twinpool shm 1 "


class Target:
    """A target whose source is the test."""

    def __init__(self, *, digest: bool = True) -> None:
        self.cache, self.ears = NumpyCache(seed=2, shared=True), Ears()
        links = ShmLinks(self.cache, digest=digest, open_timeout_s=TIMEOUT_S, chunk_timeout_s=TIMEOUT_S)
        self.before = self.cache.pool.copy()
        self.receiver: ReceiveLink
        self.receiver, self.ticket = links.listen(self.ears)

    @property
    def is_untouched(self) -> bool:
        return np.array_equal(self.cache.pool, self.before)

    def error(self) -> str:
        """Why the link failed; it is over then."""
        reason = str(self.ears.until("error")[1])
        assert self.ears.next() == ("closed",)
        return reason

    def close(self) -> None:
        self.receiver.close()
        assert self.receiver.join(WAIT_S)


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


class HandSource:
    """A source that sends what the test says."""

    def __init__(self, ticket: Ticket, fd: int | None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(f"\0{ticket.host}")
        with suppress(BrokenPipeError):  # hung up on before we spoke
            socket.send_fds(self.socket, [GREETING + ticket.secret], [] if fd is None else [fd])

    def __enter__(self) -> "HandSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def is_hung_up_on(self) -> bool:
        try:
            return self.socket.recv(100) == b""
        except ConnectionResetError:  # what we sent was not even read
            return True

    def offer(
        self, pool: NDArray[np.uint8], ids: list[int], *, digest: bytes | None = None, num_bytes: int | None = None
    ) -> None:
        """Offer one chunk, as a sender would."""
        data = pool[[i for i in ids if 0 <= i < len(pool)]].reshape(-1)
        size = len(ids) * LAYOUT.block_bytes if num_bytes is None else num_bytes
        out = np.empty(HEADER_BYTES, dtype=np.uint8)
        pack_header(ChunkHeader(handoff_id("r"), 1, 0, size, data_digest(data) if digest is None else digest), out)
        self.socket.send(out.tobytes() + np.array(ids, dtype="<i8").tobytes())


def make_memory(size: int, seals: int) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- Who may enter --------------------------------------------------------------------------------------------------


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


# --- Sources that err or lie ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "seals", "why"),
    [
        (32 * LAYOUT.block_bytes, 0, "not sealed"),
        (32 * LAYOUT.block_bytes, fcntl.F_SEAL_WRITE, "not sealed"),
        (32 * LAYOUT.block_bytes - 1, SEALS, "not of blocks"),
        (0, SEALS, "empty"),
    ],
)
def test_memory_that_is_no_pool_is_not_taken(target: Target, size: int, seals: int, why: str) -> None:
    fd = make_memory(size, seals)
    try:
        with HandSource(target.ticket, fd) as source:
            assert source.socket.recv(100) == b""
            assert why in target.error()
    finally:
        os.close(fd)


def test_more_descriptors_than_one_leave_none_behind() -> None:
    target, pools = Target(), [NumpyCache(shared=True) for _ in range(3)]
    before = num_open_files()
    with HandSource(replace(target.ticket, secret=b"\0" * 16), pools[0].memory.fd) as source:
        assert source.socket.recv(100) == b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(f"\0{target.ticket.host}")
        socket.send_fds(caller, [GREETING + target.ticket.secret], [pool.memory.fd for pool in pools])
        assert target.ears.next() == ("open",)
    target.close()
    wait_until(lambda: num_open_files() < before)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, -1, 2, 3, 4, 31], [2**62] * 6, [0, 1, 2, 3, 4, 8]])
def test_only_blocks_inside_what_was_mapped_are_read(target: Target, ids: list[int]) -> None:
    pool = HostPool(8 * LAYOUT.block_bytes)  # smaller than the target's own
    pool.bytes[:] = 5
    with HandSource(target.ticket, pool.fd) as source:
        assert source.socket.recv(100) == b"ready"
        target.receiver.receive(make_group(0, WHOLE, THERE))
        source.offer(pool.bytes.reshape(8, -1), ids)
        if max(ids) < 8 and min(ids) >= 0:
            assert target.ears.until("received") == ("received", 0, True)
            assert (target.cache.pool[THERE] == 5).all()
        else:
            assert "the source offers what it has not" in target.error()
            assert target.is_untouched


@pytest.mark.parametrize("num_ids", [0, 5, 7, 3000])
def test_a_message_of_another_size_ends_the_link(target: Target, num_ids: int) -> None:
    with HandSource(target.ticket, target.cache.memory.fd) as source:
        target.receiver.receive(make_group(0, WHOLE, THERE))
        source.offer(target.cache.pool, [0] * num_ids, num_bytes=6 * LAYOUT.block_bytes)
        assert "were due" in target.error()
        assert target.is_untouched


@pytest.mark.parametrize("message", [b"", b"x" * (HEADER_BYTES + 48), b"\0" * (HEADER_BYTES + 48)])
def test_bytes_that_are_no_offer_end_the_link(target: Target, message: bytes) -> None:
    with HandSource(target.ticket, target.cache.memory.fd) as source:
        target.receiver.receive(make_group(0, WHOLE, THERE))
        source.socket.send(message)
        assert target.error()
        assert target.is_untouched


def test_a_header_that_was_not_announced_ends_the_link(target: Target) -> None:
    with HandSource(target.ticket, target.cache.memory.fd) as source:
        target.receiver.receive(make_group(0, WHOLE, THERE))
        source.offer(target.cache.pool, HERE, num_bytes=1)
        assert "num_bytes 1 came" in target.error()
        assert target.is_untouched


@pytest.mark.parametrize("digest", [b"", b"\0" * 16])
def test_a_digest_that_does_not_hold_is_reported_and_the_link_goes_on(target: Target, digest: bytes) -> None:
    source_pool = NumpyCache(seed=1, shared=True)
    with HandSource(target.ticket, source_pool.memory.fd) as source:
        target.receiver.receive(make_group(0, WHOLE, THERE))
        source.offer(source_pool.pool, HERE, digest=digest)
        assert target.ears.until("received") == ("received", 0, False)
        assert source.socket.recv(100) == b"ready"
        assert source.socket.recv(100) == b"\0" * 8


def test_without_digests_none_is_asked_for() -> None:
    target, source_pool = Target(digest=False), NumpyCache(seed=1, shared=True)
    with HandSource(target.ticket, source_pool.memory.fd) as source:
        target.receiver.receive(make_group(0, WHOLE, THERE))
        source.offer(source_pool.pool, HERE, digest=b"")
        assert target.ears.until("received") == ("received", 0, True)
        assert np.array_equal(target.cache.read(WHOLE, THERE), source_pool.read(WHOLE, HERE))
    target.close()


def test_a_byte_that_changes_after_its_digest_fails_the_digest(target: Target) -> None:
    source_pool = NumpyCache(seed=1, shared=True)
    with HandSource(target.ticket, source_pool.memory.fd) as source:
        source.offer(source_pool.pool, HERE)
        source_pool.pool[HERE[3], 2, 100] ^= 1
        target.receiver.receive(make_group(0, WHOLE, THERE))
        assert target.ears.until("received") == ("received", 0, False)


def test_a_target_that_takes_what_was_not_offered_ends_the_link() -> None:
    listener, ticket = pull_socket.listen_on_host()
    ears, cache = Ears(), NumpyCache(seed=1, shared=True)
    sender = ShmLinks(cache, chunk_timeout_s=WAIT_S).dial(ticket, ears)
    connection, key = pull_socket.accept(listener, ticket.secret, SharedMemory(cache), WAIT_S)
    os.close(key.fds[0])
    pull_socket.welcome(connection)
    sender.send(make_group(0, WHOLE, HERE))
    pull_socket.receive(connection, HEADER_BYTES + 48, WAIT_S)
    connection.send((1).to_bytes(8, "little"))
    assert "chunk 1 was taken where 0 is due" in str(ears.until("error")[1])
    assert sender.join(WAIT_S)
    connection.close()
    listener.close()


# --- Closing while a block is copied --------------------------------------------------------------------------------


def test_what_a_source_took_back_during_the_copy_is_not_reported_as_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a digest too: the target cannot say that it took the chunk, so it does not take it."""
    copying, go_on = threading.Event(), threading.Event()

    def slow_copy(*args: object, **options: object) -> bytes:
        copying.set()
        assert go_on.wait(WAIT_S)
        return copy(*args, **options)  # type: ignore[arg-type]

    copy = shm.copy_blocks
    monkeypatch.setattr(shm, "copy_blocks", slow_copy)
    target, cache, ears = Target(digest=False), NumpyCache(seed=1, shared=True), Ears()
    sender = ShmLinks(cache, digest=False).dial(target.ticket, ears)
    target.receiver.receive(make_group(0, WHOLE, THERE))
    sender.send(make_group(0, WHOLE, HERE))
    assert copying.wait(WAIT_S)
    sender.close()
    cache.pool[HERE] = 0xEE  # they are somebody else's now
    go_on.set()
    assert "the link broke" in target.error()
    assert ("received", 0, True) not in target.ears.heard
    assert ears.heard == [("open",), ("closed",)] or ears.until("closed")
    assert sender.join(WAIT_S)


def test_close_waits_for_the_copy_under_way_and_no_block_is_written_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    copying, go_on = threading.Event(), threading.Event()

    def slow_copy(*args: object, **options: object) -> bytes:
        copying.set()
        assert go_on.wait(WAIT_S)
        return copy(*args, **options)  # type: ignore[arg-type]

    copy = shm.copy_blocks
    monkeypatch.setattr(shm, "copy_blocks", slow_copy)
    target, cache = Target(), NumpyCache(seed=1, shared=True)
    sender = ShmLinks(cache).dial(target.ticket, Ears())
    target.receiver.receive(make_group(0, WHOLE, THERE))
    target.receiver.receive(make_group(1, WHOLE, HERE))
    sender.send(make_group(0, WHOLE, HERE))
    sender.send(make_group(1, WHOLE, HERE))
    assert copying.wait(WAIT_S)
    closing = threading.Thread(target=target.receiver.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    go_on.set()
    closing.join(WAIT_S)
    after = target.cache.pool.copy()
    assert np.array_equal(target.cache.pool[HERE], target.before[HERE])
    target.close()
    assert np.array_equal(target.cache.pool, after)
    assert target.ears.heard == [("open",), ("closed",)]
    sender.close()
    assert sender.join(WAIT_S)
