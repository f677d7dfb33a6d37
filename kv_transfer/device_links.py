"""Makes the links between GPUs that a worker can use, and says why it cannot use the others.

Imports CUDA's side of torch only when it is asked for such links. Knows no peer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from twinpool.kv_transfer.device_pool import device_pool_of
from twinpool.kv_transfer.ipc_device import DigestTensor, IpcDevice
from twinpool.kv_transfer.link import Links
from twinpool.kv_transfer.nccl import Accelerator
from twinpool.model.kv_layout import KVCache


class Devices(Protocol):
    """One GPU, in its parts; each raises ValueError, with the reason, where it cannot be had."""

    def accelerator(self) -> Accelerator:
        """Return what nccl needs."""
        ...

    def ipc(self) -> IpcDevice:
        """Return what cuda_ipc needs."""
        ...

    def digest_tensor(self) -> DigestTensor:
        """Return what takes digests there."""
        ...


FindDevices = Callable[[int], Devices]  # by the index of the GPU


class CudaDevices:
    """GPU number ``index`` of this process (see Devices)."""

    def __init__(self, index: int) -> None:
        self._index = index

    def accelerator(self) -> Accelerator:
        """See Devices."""
        from twinpool.kv_transfer.cuda_accelerator import CudaAccelerator

        return CudaAccelerator(self._index)

    def ipc(self) -> IpcDevice:
        """See Devices."""
        from twinpool.kv_transfer.cuda_ipc_device import CudaIpcDevice

        return CudaIpcDevice(self._index)

    def digest_tensor(self) -> DigestTensor:
        """See Devices."""
        from twinpool.kv_transfer.device_digest import digest_tensor

        return digest_tensor


@dataclass(slots=True)
class DeviceLinks:
    """The links of the kinds that can be had, why not those of the others, and the GPU that they are for."""

    made: dict[str, Links] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    device: str = ""  # its identity


def links_between_devices(
    kinds: Sequence[str], cache: KVCache, interface: str, find: FindDevices, *, digest: bool
) -> DeviceLinks:
    """Make links of these kinds, of "cuda_ipc" and "nccl", for the GPU that the cache lies on; else for the first.

    Raises:
        ValueError: see GroupLinks; what a GPU lacks is told in the answer.
    """
    pool = device_pool_of(cache)
    found, devices = DeviceLinks(), find(0 if pool is None else pool.index)
    for kind in kinds:
        make = _make_cuda_ipc if kind == "cuda_ipc" else _make_nccl
        try:
            found.made[kind], found.device = make(cache, interface, devices, digest)
        except ValueError as error:
            found.refused[kind] = str(error)
    return found


def _make_cuda_ipc(cache: KVCache, interface: str, devices: Devices, digest: bool) -> tuple[Links, str]:  # noqa: ARG001 - needs none
    from twinpool.kv_transfer.cuda_ipc import CudaIpcLinks

    if device_pool_of(cache) is None:
        raise ValueError("this worker's KV does not lie on a GPU")
    device = devices.ipc()
    digest_tensor = devices.digest_tensor() if digest else None
    return CudaIpcLinks(cache, device, digest_tensor, digest=digest), device.identity


def _make_nccl(cache: KVCache, interface: str, devices: Devices, digest: bool) -> tuple[Links, str]:
    from twinpool.kv_transfer.nccl import NcclLinks

    accelerator = devices.accelerator()
    return NcclLinks(cache, interface, accelerator, digest=digest), accelerator.identity
