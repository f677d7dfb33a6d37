"""A group of two ranks with NCCL's rules and none of its hardware, between threads or between processes.

It keeps what NCCL promises and no more: messages match by order and carry no tag; bytes flow as through a pipe, so a
message of another size than its buffer shifts all that follow; a send lasts until it is matched; the other end's death
is no event; and an abort makes everything under way look completed, whatever is in the buffers.
"""

import queue
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

TARGET = 1
ROOM, TAKEN, DATA = b"R", b"T", b"D"  # frames: a buffer was posted; a buffer is full; bytes of a message
FRAME = struct.Struct("!cQ")


@dataclass(eq=False)
class StrictWork:
    """A message under way."""

    buffer: memoryview
    is_over: threading.Event = field(default_factory=threading.Event)

    def is_completed(self) -> bool:
        return self.is_over.is_set()

    def wait(self) -> bool:
        if not self.is_over.is_set():
            raise AssertionError("waiting for a message that is not completed could not be ended")
        return True


class StrictGroup:
    """One rank. Blocks until the other comes, for the store's timeout; then RuntimeError, as torch raises."""

    def __init__(self, store: Any, rank: int) -> None:
        self._socket = _meet(store, rank)
        self._writing = threading.Lock()
        self._is_aborted = False
        self._outgoing: queue.SimpleQueue[StrictWork | None] = queue.SimpleQueue()
        self._incoming: deque[StrictWork] = deque()
        self._under_way: set[StrictWork] = set()
        self._state = threading.Lock()  # of _incoming, _under_way and _unread
        self._unread = bytearray()
        self._room = threading.Semaphore(0)
        self._taken = threading.Semaphore(0)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send_all, self._read_all)]
        for thread in self._threads:
            thread.start()

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> StrictWork:
        work = self._begin(tensors)
        self._outgoing.put(work)
        return work

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> StrictWork:
        work = self._begin(tensors)
        with self._state:
            self._incoming.append(work)
        self._write(ROOM, b"")
        self._fill()
        return work

    def abort(self) -> None:
        if self._is_aborted:
            return
        self._is_aborted = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._outgoing.put(None)
        for semaphore in (self._room, self._taken):
            semaphore.release()
        for thread in self._threads:
            thread.join()
        self._socket.close()
        for work in self._under_way:
            work.is_over.set()

    def _begin(self, tensors: list[torch.Tensor]) -> StrictWork:
        assert not self._is_aborted, "the group was aborted"
        (tensor,) = tensors
        assert tensor.is_contiguous()
        work = StrictWork(memoryview(tensor.numpy()))
        with self._state:
            self._under_way.add(work)
        return work

    def _end(self, work: StrictWork) -> None:
        with self._state:
            self._under_way.discard(work)
        work.is_over.set()

    def _send_all(self) -> None:
        """Thread: one message after the other, each once there is a buffer for it, until that is full."""
        while (work := self._outgoing.get()) is not None:
            self._room.acquire()
            if self._is_aborted:
                return
            self._write(DATA, work.buffer)
            self._taken.acquire()
            if self._is_aborted:
                return
            self._end(work)

    def _read_all(self) -> None:
        """Thread: take frames apart. Where they end, it ends, and nobody hears of it."""
        while (head := self._read(FRAME.size)) is not None:
            kind, num_bytes = FRAME.unpack(head)
            if kind == ROOM:
                self._room.release()
            elif kind == TAKEN:
                self._taken.release()
            elif (data := self._read(num_bytes)) is not None:
                with self._state:
                    self._unread += data
                self._fill()

    def _fill(self) -> None:
        """Complete the oldest buffers, as far as bytes are there."""
        while True:
            with self._state:
                if not self._incoming or len(self._unread) < len(self._incoming[0].buffer):
                    return
                work = self._incoming.popleft()
                work.buffer[:] = self._unread[: len(work.buffer)]
                del self._unread[: len(work.buffer)]
            self._write(TAKEN, b"")
            self._end(work)

    def _write(self, kind: bytes, data: Any) -> None:
        with self._writing, suppress(OSError):
            self._socket.sendall(FRAME.pack(kind, len(data)) + bytes(data))

    def _read(self, num_bytes: int) -> bytes | None:
        data = bytearray()
        while len(data) < num_bytes:
            try:
                part = self._socket.recv(num_bytes - len(data))
            except OSError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)


def _meet(store: Any, rank: int) -> socket.socket:
    timeout_s = store.timeout.total_seconds()
    try:
        if rank != TARGET:
            port = int(store.get("port"))
            connected = socket.create_connection(("127.0.0.1", port), timeout_s)
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.settimeout(timeout_s)
                store.set("port", str(listener.getsockname()[1]))
                connected, _ = listener.accept()
    except OSError as error:
        raise RuntimeError(f"nobody came: {error}") from None
    connected.settimeout(None)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


class HostLane:
    """Host memory in a device's place: what is posted is over at once (see Lane)."""

    def in_order(self) -> AbstractContextManager[object]:
        return nullcontext()

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.full((num_bytes,), 0xEE, dtype=torch.uint8)

    def allocate_host(self, num_bytes: int) -> torch.Tensor:
        return torch.full((num_bytes,), 0xDD, dtype=torch.uint8)

    def mark(self) -> Callable[[], bool]:
        return lambda: True


@dataclass
class StrictAccelerator:
    """A device that is none (see Accelerator)."""

    identity: str = "GPU-0"

    def make_group(self, store: Any, rank: int, chunk_timeout_s: float) -> StrictGroup:
        return StrictGroup(store, rank)

    def make_lane(self) -> HostLane:
        return HostLane()
