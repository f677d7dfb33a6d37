"""Ends every process that was started below this one during a block, also those whose own parents are gone.

Linux only, as it asks the kernel to hand orphans to this process. Knows no process by name.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_S = 2.0  # to end by themselves, and again after SIGTERM
KILLED_S = 5.0  # what the kernel may need to end a killed process
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@contextmanager
def ending_descendants(patience_s: float = PATIENCE_S) -> Iterator[None]:
    """When the block is left, end the children that it has given this process and that are still there."""
    before = _children()
    _adopt_orphans(True)
    try:
        yield
    finally:
        for number, wait_s in ((0, patience_s), (signal.SIGTERM, patience_s), (signal.SIGKILL, KILLED_S)):
            if _gone(before, number, wait_s):
                break
        _adopt_orphans(False)


def _adopt_orphans(is_on: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(is_on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _gone(before: set[int], number: int, wait_s: float) -> bool:
    """Send each new child the signal, once, for as long as there are any; those of a child come when it is gone."""
    told: set[int] = set()
    deadline = time.monotonic() + wait_s
    while children := {pid for pid in _children() - before if not _is_reaped(pid)}:
        if time.monotonic() > deadline:
            return False
        for pid in children - told:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)  # a child that is not reaped keeps its pid, so this is no other process
        told |= children
        time.sleep(0.02)
    return True


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True  # somebody else waited for it


def _children() -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(stat.parent.name))
    return found
