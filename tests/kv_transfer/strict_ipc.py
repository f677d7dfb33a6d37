"""A GPU that other processes can open the memory of, with CUDA IPC's rules and host memory in its place.

It keeps what CUDA promises and no more. A handle names a whole allocation; it cannot be opened in the process that made
it, is opened once in any other, and means nothing after that process died. Copies run later, each lane's in order, and
one of memory that went away is an error of the whole lane, for good. Closing memory that a copy still reads is a crash.
"""

import ctypes
import mmap
import os
import queue
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from twinpool.kv_transfer.cuda_ipc_key import HANDLE_BYTES
from twinpool.kv_transfer.device_digest import digest_tensor
from twinpool.kv_transfer.ipc_device import Run, paired

HANDLE = struct.Struct("<QQQ")  # process id, descriptor, inode
BEFORE_BYTES, BEHIND_BYTES = 768, 256  # of an allocation that belong to somebody else, as under torch's allocator
DELAY_S = 0.0005  # from posting to running


@dataclass(eq=False)
class Memory:
    """Addresses that this process may copy from, and perhaps to."""

    array: np.ndarray
    exporter: int = 0  # the process whose memory it is; 0: this one
    num_copies: int = 0  # posted and not over

    @property
    def run(self) -> Run:
        return Run(self.array.ctypes.data, len(self.array))

    def holds(self, run: Run) -> bool:
        return self.run.address <= run.address and run.address + run.num_bytes <= self.run.address + len(self.array)


@dataclass
class StrictProcess:
    """What one process has on the device."""

    memories: dict[int, Memory] = field(default_factory=dict)  # by address
    files: dict[int, int] = field(default_factory=dict)  # of allocations that can be exported, by address
    opened: dict[bytes, int] = field(default_factory=dict)  # addresses by handle
    lock: threading.Lock = field(default_factory=threading.Lock)
    posted: "queue.SimpleQueue[tuple[float, StrictLane, Callable[[], None]]]" = field(default_factory=queue.SimpleQueue)

    def run_posted(self) -> None:
        """Thread: run what was posted, when its time has come."""
        while True:
            due_s, lane, work = self.posted.get()
            time.sleep(max(0.0, due_s - time.monotonic()))
            try:
                work()
            except RuntimeError as error:
                lane.error = error

    def find(self, run: Run) -> Memory:
        for memory in list(self.memories.values()):
            if memory.holds(run):
                return memory
        raise RuntimeError("an illegal memory access was encountered")


@cache
def this_process() -> StrictProcess:
    process = StrictProcess()
    threading.Thread(target=process.run_posted, name="strict-gpu", daemon=True).start()
    return process


_current = threading.local()


class StrictLane:
    """A stream (see CopyLane)."""

    def __init__(self) -> None:
        self.error: RuntimeError | None = None
        self._process = this_process()

    @contextmanager
    def in_order(self) -> Iterator[None]:
        _current.lane = self
        try:
            yield
        finally:
            _current.lane = None

    def allocate(self, num_bytes: int) -> torch.Tensor:
        tensor = torch.full((num_bytes,), 0xEE, dtype=torch.uint8)
        memories, address = self._process.memories, tensor.data_ptr()
        with self._process.lock:
            memories[address] = Memory(_unowned(address, num_bytes))
        weakref.finalize(tensor, memories.pop, address, None)
        return tensor

    def allocate_host(self, num_bytes: int) -> torch.Tensor:
        raise AssertionError("KV that lies on a device has no business in host memory")

    def copy(self, targets: Sequence[Run], sources: Sequence[Run]) -> None:
        assert _current.lane is self, "posted outside the lane"
        with self._process.lock:
            for target, source, num_bytes in paired(targets, sources):
                to_memory = self._process.find(Run(target, num_bytes))
                from_memory = self._process.find(Run(source, num_bytes))
                assert not to_memory.exporter, "whoever pulls writes its own memory only"
                to_memory.num_copies += 1
                from_memory.num_copies += 1
                self.post(lambda pair=(target, source, num_bytes), of=(to_memory, from_memory): self._copy(pair, of))

    def _copy(self, pair: tuple[int, int, int], memories: tuple[Memory, Memory]) -> None:
        try:
            if self.error is None:
                if memories[1].exporter and not is_running(memories[1].exporter):
                    raise RuntimeError("an illegal memory access was encountered")
                ctypes.memmove(*pair)
        finally:
            with self._process.lock:
                for memory in memories:
                    memory.num_copies -= 1

    def post(self, work: Callable[[], None]) -> None:
        self._process.posted.put((time.monotonic() + DELAY_S, self, work))

    def mark(self) -> Callable[[], bool]:
        is_over = threading.Event()
        self.post(is_over.set)

        def query() -> bool:
            if self.error is not None and is_over.is_set():
                raise self.error
            return is_over.is_set()

        return query


def strict_digest(tensor: torch.Tensor) -> int:
    """Of what the tensor holds once all that its lane has before is over, as a reduction on a device would be."""
    lane: StrictLane = _current.lane
    assert lane is not None, "posted outside the lane"
    is_over, found = threading.Event(), list[int]()

    def reduce() -> None:
        found.append(digest_tensor(tensor))
        is_over.set()

    lane.post(reduce)
    assert is_over.wait(60.0)
    if lane.error is not None:
        raise lane.error
    return found[0]


@dataclass
class StrictIpcDevice:
    """A device that is none (see IpcDevice)."""

    identity: str = "GPU-0"

    def export(self, tensor: torch.Tensor) -> tuple[bytes, int]:
        process, pool = this_process(), Run(tensor.data_ptr(), tensor.numel())
        for address, fd in process.files.items():
            if process.memories[address].holds(pool):
                handle = HANDLE.pack(os.getpid(), fd, os.fstat(fd).st_ino)
                return handle.ljust(HANDLE_BYTES, b"\0"), pool.address - address
        raise ValueError("KV lies in memory that cannot be shown to others")

    def open(self, handle: bytes) -> Run:
        pid, fd, inode = HANDLE.unpack(handle[: HANDLE.size])
        process = this_process()
        if pid == os.getpid():
            raise RuntimeError("invalid device context: the handle is of this process")
        if handle in process.opened:
            raise RuntimeError("the handle is open in this process")
        try:
            with Path(f"/proc/{pid}/fd/{fd}").open("rb") as file:
                if os.fstat(file.fileno()).st_ino != inode or not is_running(pid):
                    raise RuntimeError("invalid resource handle")
                mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except OSError:
            raise RuntimeError("invalid resource handle") from None
        memory = Memory(np.frombuffer(mapping, dtype=np.uint8), pid)
        with process.lock:
            process.memories[memory.run.address] = memory
            process.opened[handle] = memory.run.address
        return memory.run

    def close(self, address: int) -> None:
        process = this_process()
        with process.lock:
            memory = process.memories[address]
            assert memory.exporter, "it was never opened"
            assert not memory.num_copies, "a copy still reads it"
            del process.memories[address]
            process.opened = {handle: at for handle, at in process.opened.items() if at != address}

    def make_lane(self) -> StrictLane:
        return StrictLane()


def allocate_strict(num_bytes: int) -> torch.Tensor:
    """Memory of the device for a pool, in the middle of an allocation, and others can be shown it."""
    process, size = this_process(), BEFORE_BYTES + num_bytes + BEHIND_BYTES
    fd = os.memfd_create("strict-gpu", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    mapping = mmap.mmap(fd, size)
    memory = Memory(np.frombuffer(mapping, dtype=np.uint8))
    address = memory.run.address
    tensor = torch.frombuffer(mapping, dtype=torch.uint8)[BEFORE_BYTES : BEFORE_BYTES + num_bytes]
    with process.lock:
        process.memories[address] = memory
        process.files[address] = fd
    return tensor


def _unowned(address: int, num_bytes: int) -> np.ndarray:
    """View memory that somebody else keeps."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


def is_running(pid: int) -> bool:
    """Whether the process is there, stopped or not, and not dead yet unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
