"""Allocates a KV pool that other processes of this host may be shown, but cannot change.

The memory is a sealed memfd: it has no name that could be left behind, and ends with the last process that maps it.
Knows no layout, no peer and no policy.
"""

import errno
import fcntl
import logging
import mmap
import os
import stat
import weakref

import numpy as np
from numpy.typing import NDArray

from twinpool.core.errors import SpecError

_NOEXEC_SEAL = 0x8  # of memfd_create, Linux 6.3; Python has no name for it yet
_SEAL_FUTURE_WRITE = 0x10  # nobody maps it writable any more, or writes to it; mappings that exist go on
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _SEAL_FUTURE_WRITE

PoolBytes = NDArray[np.uint8]

log = logging.getLogger(__name__)


class HostPool:
    """Zeroed memory that this process writes, and the descriptor by which others map it read-only.

    Pages that were never touched cost nothing. The memory lives as long as an array over it, the descriptor as long as
    this object.

    Raises:
        SpecError: so much memory cannot be had.
        OSError: this machine has no memfd, or cannot seal it.
    """

    def __init__(self, num_bytes: int) -> None:
        fd = _create()
        close = weakref.finalize(self, os.close, fd)
        try:
            _reserve(num_bytes)
            os.ftruncate(fd, num_bytes)
            mapping = mmap.mmap(fd, num_bytes)
        except (OSError, OverflowError, ValueError) as error:
            close()
            raise SpecError(f"kv.memory: cannot allocate {num_bytes} bytes of shared memory: {error}") from None
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except OSError:
            close()
            raise
        self.fd = fd
        self.bytes: PoolBytes = np.frombuffer(mapping, dtype=np.uint8)


def allocate_shared(num_bytes: int) -> HostPool | None:
    """A pool, or None, and a warning, where this machine cannot make one: then plain memory must do.

    Raises:
        SpecError: so much memory cannot be had.
    """
    try:
        return HostPool(num_bytes)
    except OSError as error:
        log.warning("KV cannot be shared with other processes: no memfd: %s", error)
        return None


def map_pool(fd: int) -> PoolBytes:
    """Map a pool that another process made, read-only, for as long as the array lives. ``fd`` stays the caller's.

    Raises:
        ValueError: it is no memory that is sealed as ours is. A file that can shrink would kill whoever reads it.
        OSError: it cannot be mapped.
    """
    status = os.fstat(fd)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if not stat.S_ISREG(status.st_mode) or seals & SEALS != SEALS:
        raise ValueError("the memory offered is not sealed")
    if status.st_size == 0:
        raise ValueError("the memory offered is empty")
    return np.frombuffer(mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ), dtype=np.uint8)


def _create() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("twinpool-kv", flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create("twinpool-kv", flags)  # a kernel before 6.3


def _reserve(num_bytes: int) -> None:
    """Ask for as much private memory and give it back: a memfd of any size can be made, but fails when touched."""
    mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
