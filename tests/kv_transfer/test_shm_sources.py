"""Shared memory whose source errs or lies, and links that are closed while a block is copied."""

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from twinpool.kv_transfer import pull_socket, shm
from twinpool.kv_transfer.header import HEADER_BYTES
from twinpool.kv_transfer.shm import SharedMemory, ShmLinks
from twinpool.model.host_pool import SEALS, HostPool

from .fakes import LAYOUT, WAIT_S, Ears, NumpyCache, make_group, wait_until
from .shm_hands import GREETING, HERE, THERE, WHOLE, HandSource, Target, make_memory, num_open_files

pytestmark = pytest.mark.slow  # real sockets and real waits


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


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
