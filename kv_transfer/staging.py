"""Memory on a device, and page-locked memory before it, where chunks wait between a link's thread and its wire.

KV pools lie in host memory, so every chunk takes this hop. A pool on the device would gather into ``StagingSlot.parts``
itself, and post them without ``upload`` and ``take``. Knows no link and no group.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from twinpool.kv_transfer.header import Bytes

if TYPE_CHECKING:
    import torch


class Lane(Protocol):
    """Memory and an order of execution on a device: a stream."""

    def in_order(self) -> AbstractContextManager[object]:
        """Within it, what the thread posts to the device runs in this lane, one after the other."""
        ...

    def allocate(self, num_bytes: int) -> "torch.Tensor":
        """Return uint8 memory of the device."""
        ...

    def allocate_host(self, num_bytes: int) -> "torch.Tensor":
        """Return uint8 memory of the host that the device can copy from and to without the CPU."""
        ...

    def mark(self) -> Callable[[], bool]:
        """Return whether all that is posted by now is over, for asking again and again."""
        ...


class StagingSlot:
    """Room for one chunk at a time: data, and its header behind it. All calls from one thread, within ``in_order``
    but for ``take``; the memory may be used again when what was posted with it is over.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._num_bytes = 0
        self._device: torch.Tensor | None = None
        self._host: torch.Tensor | None = None

    def parts(self, header_bytes: int, data_bytes: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return the device's memory for a header and for data of these sizes."""
        device, _ = self._memory(header_bytes + data_bytes)
        return device[data_bytes : data_bytes + header_bytes], device[:data_bytes]

    def upload(self, header: Bytes, data: Bytes) -> None:
        """Copy a chunk to the device, on the lane."""
        num_bytes = len(header) + len(data)
        device, host = self._memory(num_bytes)
        staged = host.numpy()
        staged[: len(data)] = data
        staged[len(data) : num_bytes] = header
        device[:num_bytes].copy_(host[:num_bytes], non_blocking=True)

    def clear_header(self, header_bytes: int, data_bytes: int) -> None:
        """Zero the header's place, on the lane."""
        self.parts(header_bytes, data_bytes)[0].zero_()

    def start_download(self, header_bytes: int, data_bytes: int) -> Callable[[], bool]:
        """Copy a chunk back to the host, on the lane; the answer tells when it is there."""
        num_bytes = header_bytes + data_bytes
        device, host = self._memory(num_bytes)
        host[:num_bytes].copy_(device[:num_bytes], non_blocking=True)
        return self._lane.mark()

    def take(self, header: Bytes, data: Bytes) -> None:
        """Fill both from what has landed on the host."""
        _, host = self._memory(len(header) + len(data))
        landed = host.numpy()
        data[:] = landed[: len(data)]
        header[:] = landed[len(data) : len(data) + len(header)]

    def _memory(self, num_bytes: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Device and host memory of at least this size; allocated when a chunk is larger than any before."""
        if self._device is None or self._host is None or self._num_bytes < num_bytes:
            self._device = self._lane.allocate(num_bytes)
            self._host = self._lane.allocate_host(num_bytes)
            self._num_bytes = num_bytes
        return self._device, self._host
