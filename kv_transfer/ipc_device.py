"""What links that pull between GPUs need of one, as protocols; and each allocation of a peer opened once.

Knows neither CUDA (see cuda_ipc_device.py) nor links. The rules are CUDA's: a handle names a whole allocation, cannot
be opened in the process that made it, and is opened once in any other, however many links use it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twinpool.kv_transfer.cuda_ipc_key import IpcKey
from twinpool.kv_transfer.staging import Lane

if TYPE_CHECKING:
    import torch

DigestTensor = Callable[["torch.Tensor"], int]  # 64 bits of a uint8 tensor's bytes and their order, on its device


@dataclass(frozen=True, slots=True)
class Run:
    """Contiguous bytes on a device."""

    address: int
    num_bytes: int


class CopyLane(Lane, Protocol):
    """A lane that copies between addresses, of this process's memory on the device or of an allocation it opened."""

    def copy(self, targets: Sequence[Run], sources: Sequence[Run]) -> None:
        """Post copies of the sources' bytes, joined, over the targets', which are as many. Within ``in_order``.

        Raises:
            RuntimeError: the device refused one; those before it run.
        """
        ...


class IpcDevice(Protocol):
    """A GPU whose memory other processes can open."""

    identity: str  # of the physical device: equal only for one and the same

    def export(self, tensor: "torch.Tensor") -> tuple[bytes, int]:
        """Return the handle of the allocation that the tensor lies in, and its offset there.

        Raises:
            ValueError: it lies in memory that cannot be opened by others.
        """
        ...

    def open(self, handle: bytes) -> Run:
        """Open another process's allocation: where all of it is now.

        Raises:
            RuntimeError: it cannot be opened here.
        """
        ...

    def close(self, address: int) -> None:
        """Close what was opened; no copy of it may be under way."""
        ...

    def make_lane(self) -> CopyLane:
        """Return an order of execution for one end of one link."""
        ...


@dataclass(slots=True)
class _Opened:
    allocation: Run
    num_users: int


class OpenAllocations:
    """The allocations of peers that are open in this process on one device. From any thread."""

    def __init__(self, device: IpcDevice) -> None:
        self._device = device
        self._opened: dict[tuple[bytes, bytes], _Opened] = {}
        self._lock = threading.Lock()

    def open(self, key: IpcKey) -> Run:
        """Where the key's pool is now, until as many ``close``.

        Raises:
            RuntimeError: the allocation cannot be opened.
            ValueError: the pool is not inside the allocation. Nothing is left open.
        """
        with self._lock:
            opened = self._opened.get((key.pool_id, key.handle))
            if opened is None:
                opened = _Opened(self._device.open(key.handle), 0)
            allocation = opened.allocation
            if key.offset + key.num_bytes > allocation.num_bytes:
                if not opened.num_users:
                    self._device.close(allocation.address)
                raise ValueError(f"a pool of {key.num_bytes} bytes at {key.offset} in {allocation.num_bytes}")
            opened.num_users += 1
            self._opened[key.pool_id, key.handle] = opened
            return Run(allocation.address + key.offset, key.num_bytes)

    def close(self, key: IpcKey) -> None:
        """One user fewer; the last closes the allocation."""
        with self._lock:
            opened = self._opened[key.pool_id, key.handle]
            opened.num_users -= 1
            if not opened.num_users:
                del self._opened[key.pool_id, key.handle]
                self._device.close(opened.allocation.address)


def paired(targets: Sequence[Run], sources: Sequence[Run]) -> Iterator[tuple[int, int, int]]:
    """Cut both where either ends: yields ``target address, source address, bytes``. Both are equally many bytes."""
    assert sum(run.num_bytes for run in targets) == sum(run.num_bytes for run in sources)
    waiting, done_of_target = iter(targets), 0
    target = next(waiting, None)
    for source in sources:
        done_of_source = 0
        while done_of_source < source.num_bytes:
            assert target is not None
            num_bytes = min(source.num_bytes - done_of_source, target.num_bytes - done_of_target)
            yield target.address + done_of_target, source.address + done_of_source, num_bytes
            done_of_source += num_bytes
            done_of_target += num_bytes
            if done_of_target == target.num_bytes:
                target, done_of_target = next(waiting, None), 0
