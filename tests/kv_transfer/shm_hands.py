"""Ends of links over shared memory that a test plays by hand, and what they map."""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinpool.kv_transfer.header import HEADER_BYTES, ChunkHeader, data_digest, handoff_id, pack_header
from twinpool.kv_transfer.link import ReceiveLink, Ticket
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.shm import ShmLinks

from .fakes import LAYOUT, WAIT_S, Ears, NumpyCache

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
