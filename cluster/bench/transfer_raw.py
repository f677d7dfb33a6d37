"""What a link can do at best, for `twinpool bench transfer`: one contiguous piece of memory, nothing beside it.

Over gloo one tensor is sent and received; over shared memory the target copies once. Knows no layout and no handoff.
"""

import importlib
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from twinpool.kv_transfer.header import Bytes
from twinpool.model.host_pool import map_pool

TIMEOUT = timedelta(seconds=60)
SOURCE, TARGET = 0, 1  # ranks


class RawGloo:
    """One end of a plain group of two. The target hosts the store. Every method blocks."""

    def __init__(self, memory: Bytes, host: str) -> None:
        self._distributed = importlib.import_module("torch.distributed")
        self._memory = importlib.import_module("torch").from_numpy(memory)
        self._host = host
        self._group: Any = None
        self._store: Any = None
        self._work: Any = None

    def listen(self) -> int:
        """Host the store; returns its port."""
        with socket.socket() as listener:
            listener.bind((self._host, 0))
            listener.listen()
            port: int = listener.getsockname()[1]
            self._store = self._distributed.TCPStore(
                self._host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=TIMEOUT,
                master_listen_fd=listener.detach(),
            )
        return port

    def dial(self, port: int) -> None:
        """Find the store."""
        self._store = self._distributed.TCPStore(
            self._host, port, is_master=False, wait_for_workers=False, timeout=TIMEOUT
        )

    def meet(self, rank: int) -> None:
        """Wait for the other end."""
        backend = self._distributed.ProcessGroupGloo
        options = backend._Options()
        options._timeout = TIMEOUT
        options._threads = 1
        options._devices = [backend.create_device(hostname=self._host)]
        self._group = backend(self._distributed.PrefixStore("raw", self._store), rank, 2, options)

    def post_receive(self, num_bytes: int) -> None:
        """Be ready for so many bytes."""
        self._work = self._group.recv([self._memory[:num_bytes]], SOURCE, 0)

    def receive(self) -> float:
        """Wait for them; returns when they were there, by time.monotonic."""
        self._work.wait(TIMEOUT)
        return time.monotonic()

    def send(self, num_bytes: int) -> float:
        """Send them; returns when that began."""
        started_s = time.monotonic()
        self._group.send([self._memory[:num_bytes]], TARGET, 0).wait(TIMEOUT)
        return started_s

    def close(self) -> None:
        """Drop the connection."""
        self._work = self._group = self._store = None


class RawCopy:
    """Copies from the beginning of another process's pool, mapped read-only, to the beginning of ours."""

    def __init__(self, memory: Bytes, pid: int, fd: int) -> None:
        self._memory = memory
        ours = os.open(Path(f"/proc/{pid}/fd/{fd}"), os.O_RDONLY)
        try:
            self._theirs = map_pool(ours)
        finally:
            os.close(ours)

    def copy(self, num_bytes: int) -> float:
        """Returns the seconds it took."""
        started_s = time.monotonic()
        np.copyto(self._memory[:num_bytes], self._theirs[:num_bytes])
        return time.monotonic() - started_s
