"""A CUDA device, as NCCL links use it (see Accelerator): its identity, its streams and memory, and its groups.

The one file of the links that needs a GPU to run. Knows no link.
"""

import importlib
import logging
import math
import os
import threading
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# With any other value torch ends the whole process when a peer is gone, or when ending a group takes long.
REQUIRED_ENVIRONMENT = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "2", "TORCH_NCCL_ENABLE_MONITORING": "0"}
_FORMER_NAMES = {"NCCL_ASYNC_ERROR_HANDLING": "TORCH_NCCL_ASYNC_ERROR_HANDLING"}
_MAX_CTAS = 8  # of a link's messages, so that the model keeps the GPU
ABORT_TIMEOUT_S = 15.0  # torch's abort waits for its own watchdog, which may be in the middle of another group
_WATCHDOG_FACTOR = 3  # torch's deadline over ours, which is to pass first: after its own, messages look completed

log = logging.getLogger(__name__)

_unended: list[object] = []  # groups that could not be aborted, and their memory: they may write there for ever


class CudaAccelerator:
    """GPU number ``index`` of this process.

    Args:
        open_timeout_s: for a communicator to be made; torch reads it once in a process.

    Raises:
        ValueError: there is no such GPU, torch has no NCCL, or the environment has a setting that ends the process
            when a peer dies. Nothing was changed.
    """

    def __init__(
        self, index: int, *, open_timeout_s: float = 10.0, environ: MutableMapping[str, str] = os.environ
    ) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._distributed: Any = importlib.import_module("torch.distributed")
        if not self._torch.cuda.is_available():
            raise ValueError("nccl needs a GPU, and torch can use none on this machine")
        if not self._distributed.is_available() or not self._distributed.is_nccl_available():
            raise ValueError("nccl needs a torch that was built with NCCL")
        if not 0 <= index < self._torch.cuda.device_count():
            raise ValueError(f"there is no GPU {index}")
        settle_environment(environ, open_timeout_s)
        self._device = self._torch.device("cuda", index)
        self.identity = device_identity(index)

    def make_group(self, store: Any, rank: int, chunk_timeout_s: float) -> Any:
        """See Accelerator. The communicator is made at once, and is the only one of the group."""
        group = self._new_group(store, rank, chunk_timeout_s)
        try:
            group.eager_connect_single_device(self._device)
        except RuntimeError:
            abort_within(group, ABORT_TIMEOUT_S)
            raise
        return group

    def make_lane(self) -> "CudaLane":
        """See Accelerator."""
        return CudaLane(self._device)

    def _new_group(self, store: Any, rank: int, chunk_timeout_s: float) -> Any:
        backend = self._distributed.ProcessGroupNCCL
        options = backend.Options(is_high_priority_stream=False)
        options._timeout = timedelta(seconds=_WATCHDOG_FACTOR * chunk_timeout_s)
        options.config.blocking = 0
        options.config.max_ctas = _MAX_CTAS
        return backend(store, rank, 2, options)


class CudaLane:
    """A stream of the lowest priority (see Lane)."""

    def __init__(self, device: "torch.device") -> None:
        self._torch: Any = importlib.import_module("torch")
        self._device = device
        self._stream = self._torch.cuda.Stream(device, priority=0)

    def in_order(self) -> AbstractContextManager[object]:
        """See Lane."""
        context: AbstractContextManager[object] = self._torch.cuda.stream(self._stream)
        return context

    def allocate(self, num_bytes: int) -> "torch.Tensor":
        """See Lane."""
        memory: torch.Tensor = self._torch.empty(num_bytes, dtype=self._torch.uint8, device=self._device)
        return memory

    def allocate_host(self, num_bytes: int) -> "torch.Tensor":
        """See Lane."""
        memory: torch.Tensor = self._torch.empty(num_bytes, dtype=self._torch.uint8, pin_memory=True)
        return memory

    def mark(self) -> Callable[[], bool]:
        """See Lane."""
        event = self._torch.cuda.Event()
        event.record(self._stream)
        query: Callable[[], bool] = event.query
        return query


def abort_within(group: Any, timeout_s: float, and_then: Callable[[], None] | None = None) -> None:
    """Abort a group; where that hangs, leave it to a thread.

    Where it fails, something may still be under way: the group is kept until the process ends, and ``and_then`` with
    all that it refers to, so that nothing else is ever put into their memory.

    Args:
        and_then: to be done once nothing of the group is under way any more, however late that is; never if it fails.
    """

    def abort() -> None:
        try:
            group.abort()
        except RuntimeError as error:
            log.error("a group could not be aborted, so its memory on the GPU stays taken: %s", error)
            _unended.append((group, and_then))
            return
        if and_then is not None:
            and_then()

    thread = threading.Thread(target=abort, name="nccl-abort", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        log.error("aborting a group takes over %g s: its memory on the GPU stays taken", timeout_s)


def device_identity(index: int) -> str:
    """A GPU's name and UUID: equal in two processes only for one and the same."""
    properties: Any = importlib.import_module("torch").cuda.get_device_properties(index)
    return f"{properties.name} {properties.uuid}"


def settle_environment(environ: MutableMapping[str, str], open_timeout_s: float) -> None:
    """Set what torch reads when it makes a group; all of it, or nothing.

    Raises:
        ValueError: a variable is set to what would end the process when a peer dies.
    """
    for name, value in environ.items():
        required = REQUIRED_ENVIRONMENT.get(_FORMER_NAMES.get(name, name))
        if required is not None and value != required:
            raise ValueError(f"nccl needs {name}={required}, not {value}: torch would end the worker with its peer")
    environ.update(REQUIRED_ENVIRONMENT)
    environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(math.ceil(open_timeout_s)))
    environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "0")  # one message at a time is meant
