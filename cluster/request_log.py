"""Writes one line for each request that this gateway ended, on a thread of its own: no request ever waits for a disk.

Knows how a file is kept whole; what a line holds is simulator/traces/request_log.py's. No text of a prompt gets there.
"""

import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from twinpool.core.errors import SpecError
from twinpool.simulator.traces.request_log import KEY, LoggedRequest, to_line

log = logging.getLogger(__name__)

FLUSH_S = 0.25  # a line reaches the system so long after its request ended
MAX_WAITING = 20_000  # lines, where the disk is slower than requests; those beyond are not written
MAX_AT_ONCE = 2_000
TAIL_BYTES = 1 << 20  # longer than any line
CLOSE_S = 5.0

Rest = Callable[[LoggedRequest], LoggedRequest]  # fills in, on the writer's thread, what takes long


class _Waiting(NamedTuple):
    logged: LoggedRequest
    rest: Rest | None


class RequestLog:
    """Owns one file, appended to. A disk that is full or gone costs lines and warnings, and nothing else.

    What was written survives the end of this process, however it comes; the last quarter of a second may not.
    """

    def __init__(self, path: str) -> None:
        """Open or make the file; what a crash left of a last line is taken off.

        Raises:
            SpecError: it cannot be written, or holds something else. It was not changed.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o640)
        except OSError as error:
            raise SpecError(f"gateway.request_log: {path} cannot be written: {error.strerror}") from None
        try:
            _check_end(self._fd, path)
        except BaseException:
            os.close(self._fd)
            raise
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._num_dropped = 0  # since the file was last well
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def add(self, logged: LoggedRequest, rest: Rest | None = None) -> None:
        """Have a line written, soon. Never waits and never raises."""
        if self._is_closed or self._queue.qsize() >= MAX_WAITING:
            self._drop(1, "more wait than the disk takes")
        else:
            self._queue.put(_Waiting(logged, rest))

    def close(self) -> None:
        """Write what waits, for 5 seconds at most. Idempotent; may wait, so not for an event loop."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._take()
            lines = [line for item in batch if (line := _line(item))]
            try:
                _append(self._fd, "".join(lines).encode())
            except OSError as error:
                self._drop(len(batch), str(error))
                continue
            if self._num_dropped and lines:
                log.warning("%s: is written again; %d requests are missing", self._path, self._num_dropped)
                self._num_dropped = 0
        os.close(self._fd)

    def _take(self) -> tuple[list[_Waiting], bool]:
        """What came until a while after the first; and whether more may come."""
        item, batch = self._queue.get(), list[_Waiting]()
        until_s = time.monotonic() + FLUSH_S
        while item is not None:
            batch.append(item)
            left_s = until_s - time.monotonic()
            if left_s <= 0 or len(batch) >= MAX_AT_ONCE:
                return batch, True
            try:
                item = self._queue.get(timeout=left_s)
            except queue.Empty:
                return batch, True
        return batch, False

    def _drop(self, count: int, why: str) -> None:
        if not self._num_dropped:
            log.warning("%s: requests are not logged: %s", self._path, why)
        self._num_dropped += count


def _line(item: _Waiting) -> str:
    """Empty for a request over which a rule of ours was broken: it must not end the thread."""
    try:
        return to_line(item.logged if item.rest is None else item.rest(item.logged))
    except Exception:
        log.exception("a request cannot be logged")
        return ""


def _append(fd: int, data: bytes) -> None:
    """Write all or, where that fails, nothing."""
    size, left = os.fstat(fd).st_size, memoryview(data)
    try:
        while left:
            left = left[os.write(fd, left) :]
    except OSError:
        with suppress(OSError):  # of what is no file there is nothing to take back
            os.ftruncate(fd, size)
        raise


def _check_end(fd: int, path: str) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return
    begin = f'{{"{KEY}":'.encode()
    if os.pread(fd, len(begin), 0) != begin:
        raise SpecError(f"gateway.request_log: {path} holds something else; name another file")
    first = max(0, status.st_size - TAIL_BYTES)
    tail = os.pread(fd, TAIL_BYTES, first)
    if not tail.endswith(b"\n"):
        os.ftruncate(fd, first + tail.rfind(b"\n") + 1)


def path_of_replica(path: str, folder: Path, index: int, replicas: int) -> str:
    """Where a gateway writes: ``path`` itself, or with the gateway's name before its suffix where there are several.

    Args:
        folder: that a relative path is meant from.
    """
    if not path:
        return ""
    whole = (folder / Path(path).expanduser()).absolute()
    return str(whole if replicas == 1 else whole.with_name(f"{whole.stem}.gateway-{index}{whole.suffix}"))
