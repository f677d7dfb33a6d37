"""A CUDA device, as links that pull use it (see IpcDevice): handles, opened allocations, and copies between addresses.

Calls CUDA's driver library by ctypes for what torch has no public name for. Needs a GPU to run; knows no link.
"""

import ctypes
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from twinpool.kv_transfer.cuda_accelerator import CudaLane, device_identity
from twinpool.kv_transfer.cuda_ipc_key import HANDLE_BYTES
from twinpool.kv_transfer.ipc_device import Run, paired

if TYPE_CHECKING:
    import torch

_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_Address = ctypes.c_uint64  # CUdeviceptr


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_byte * HANDLE_BYTES),)  # CUipcMemHandle


class CudaIpcDevice:
    """GPU number ``index`` of this process.

    Raises:
        ValueError: there is no such GPU.
    """

    def __init__(self, index: int) -> None:
        torch: Any = importlib.import_module("torch")
        if not torch.cuda.is_available() or not 0 <= index < torch.cuda.device_count():
            raise ValueError(f"torch can use no GPU {index} on this machine")
        self.identity = device_identity(index)
        self._device = torch.device("cuda", index)
        torch.zeros(1, device=self._device)  # makes the context that all calls below share
        number = ctypes.c_int()
        _call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(index))
        self._context = ctypes.c_void_p()
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), number)

    def export(self, tensor: "torch.Tensor") -> tuple[bytes, int]:
        """See IpcDevice."""
        base, size, handle = _Address(), ctypes.c_size_t(), _Handle()
        address = _Address(tensor.data_ptr())
        try:
            with _current(self._context):
                _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
                _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
        except RuntimeError as error:
            why = "expandable segments of PYTORCH_CUDA_ALLOC_CONF, and memory pools, cannot be"
            raise ValueError(f"KV lies in memory that cannot be shown to others ({error}): {why}") from None
        offset = tensor.data_ptr() - base.value
        if offset + tensor.numel() > size.value:
            raise ValueError("KV does not lie in one allocation of the GPU")
        return bytes(handle), offset

    def open(self, handle: bytes) -> Run:
        """See IpcDevice."""
        opened, base, size = _Address(), _Address(), ctypes.c_size_t()
        with _current(self._context):
            theirs = _Handle.from_buffer_copy(handle)
            _call("cuIpcOpenMemHandle_v2", ctypes.byref(opened), theirs, ctypes.c_uint(_LAZY_PEER_ACCESS))
            try:
                _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), opened)
            except RuntimeError:
                _call("cuIpcCloseMemHandle", opened)
                raise
        return Run(opened.value, size.value - (opened.value - base.value))

    def close(self, address: int) -> None:
        """See IpcDevice."""
        with _current(self._context):
            _call("cuIpcCloseMemHandle", _Address(address))

    def make_lane(self) -> "CudaCopyLane":
        """See IpcDevice."""
        return CudaCopyLane(self._device, self._context)


class CudaCopyLane(CudaLane):
    """A stream of the lowest priority (see CopyLane)."""

    def __init__(self, device: "torch.device", context: ctypes.c_void_p) -> None:
        super().__init__(device)
        self._context = context

    def copy(self, targets: Sequence[Run], sources: Sequence[Run]) -> None:
        """See CopyLane."""
        stream = ctypes.c_void_p(self._stream.cuda_stream)
        with _current(self._context):
            for target, source, num_bytes in paired(targets, sources):
                size = ctypes.c_size_t(num_bytes)
                _call("cuMemcpyDtoDAsync_v2", _Address(target), _Address(source), size, stream)


@contextmanager
def _current(context: ctypes.c_void_p) -> Iterator[None]:
    """Have the calling thread use a device's context, which is torch's own."""
    _call("cuCtxPushCurrent_v2", context)
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: object) -> None:
    """Raises RuntimeError with CUDA's own word for what went wrong."""
    status: int = getattr(_driver(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'unknown error').decode()}")
