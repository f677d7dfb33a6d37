"""Links over torch.distributed's gloo backend.

Knows no handoffs, and leaves to group_links.py how the ends meet. A group that failed once is useless (torch closes
its connection), and one end cannot interrupt its own wait: it ends when the other end goes, or at its deadline.
"""

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np

from twinpool.kv_transfer.chunk_wire import Cut, Wait
from twinpool.kv_transfer.group_links import GroupLinks, first_line
from twinpool.kv_transfer.header import HEADER_BYTES, Bytes
from twinpool.kv_transfer.link import CHUNK_BYTES, LinkError

# Measured: 64 MiB in messages of 512 KiB and more cost what one message does, of 256 KiB a third more, of 128 KiB two
# thirds; to stage them, twice as much. Staged messages of 1 MiB cost a tenth more than of a whole chunk.
CUT = Cut(min_run_bytes=128 << 10, message_bytes=CHUNK_BYTES)
_NUM_CHUNKS = 1 << 10  # that have tags of their own: two that differ never meet, and gloo's tags are bounded
_NUM_PARTS = 1 << 12
_HEADER_TAG = _NUM_PARTS - 1  # so that what one end takes for data is never the other's header
_CANCEL_TAG = _NUM_CHUNKS * _NUM_PARTS  # nothing is ever sent under it
_SOON = timedelta(milliseconds=1)
_BYTES_PER_WAIT = 2 << 20  # each wakes the thread; what has arrived meanwhile is still in a cache


class GlooLinks(GroupLinks):
    """Makes gloo links (see GroupLinks)."""

    kind = "gloo"
    cut = CUT

    def _connect(self, store: Any, rank: int, closing: threading.Event) -> "GlooWire":  # noqa: ARG002 - gloo cannot
        backend = self._distributed.ProcessGroupGloo
        options = backend._Options()
        options._timeout = timedelta(seconds=self._open_timeout_s)
        options._threads = 1  # of collectives, which we do not use
        options._devices = [backend.create_device(hostname=self._host)]
        return GlooWire(backend(store, rank, 2, options), 1 - rank, self._chunk_timeout_s, self.cut)


class GlooWire:
    """A group of two, as a Wire. A chunk's parts and its header are messages, posted together, the header last."""

    def __init__(self, group: Any, peer: int, timeout_s: float, cut: Cut | None = CUT) -> None:
        self.cut = cut
        self._group: Any = group
        self._peer = peer
        self._timeout_s = timeout_s
        self._ending = threading.Lock()  # held while the group goes, so that who cancels waits for that
        self._from_numpy = importlib.import_module("torch").from_numpy

    def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
        """See Wire."""
        first_tag = chunk % _NUM_CHUNKS * _NUM_PARTS
        works = [self._post("send", part, first_tag + number) for number, part in enumerate(parts)]
        works.append(self._post("send", header, first_tag + _HEADER_TAG))
        return partial(_wait_sent, works, self._timeout_s)

    def receive(self, chunk: int, header: Bytes, parts: Sequence[Bytes], arrived: Callable[[Bytes], None]) -> Wait:
        """See Wire. gloo takes a shorter message for a whole one, and dies of a longer: sizes must be agreed."""
        first_tag = chunk % _NUM_CHUNKS * _NUM_PARTS
        works = [self._post("recv", part, first_tag + number) for number, part in enumerate(parts)]
        works.append(self._post("recv", header, first_tag + _HEADER_TAG))
        return partial(_wait_received, works, parts, arrived, self._timeout_s)

    def _post(self, name: str, part: Bytes, tag: int) -> Any:
        assert self._group is not None
        try:
            return getattr(self._group, name)([self._from_numpy(part)], self._peer, tag)
        except RuntimeError as error:
            raise LinkError(first_line(error)) from None

    def cancel(self) -> None:
        """See Wire. A receive that expires has gloo close the connection at once, which nothing else does."""
        with self._ending:
            self._disconnect()

    def close(self) -> None:
        """See Wire. To forget the group is not enough: its connection lasts as long as anybody holds a message of it,
        as an error's traceback does.
        """
        with self._ending:
            self._disconnect()
            self._group = None

    def _disconnect(self) -> None:
        if self._group is None:
            return
        never = np.empty(HEADER_BYTES, dtype=np.uint8)
        with contextlib.suppress(RuntimeError):  # it has expired, or the connection was closed already
            self._group.recv([self._from_numpy(never)], self._peer, _CANCEL_TAG).wait(_SOON)


def _wait(works: Sequence[Any], deadline: float) -> None:
    """Wait for all of them; an expired wait closes the group's connection.

    The last first: the others are over by then, so that the thread is woken once.
    """
    for work in reversed(works):
        try:
            work.wait(timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except RuntimeError as error:
            raise LinkError(first_line(error)) from None


def _wait_sent(works: Sequence[Any], timeout_s: float) -> None:
    _wait(works, time.monotonic() + timeout_s)


def _wait_received(
    works: Sequence[Any], parts: Sequence[Bytes], arrived: Callable[[Bytes], None], timeout_s: float
) -> None:
    """``works`` are those of the parts, and the header's. Each is waited for once: a second wait would never end."""
    deadline = time.monotonic() + timeout_s
    step = max(1, _BYTES_PER_WAIT // len(parts[0]))
    for first in range(0, len(parts), step):
        end = min(first + step, len(parts))
        _wait(works[first:end], deadline)
        for part in parts[first:end]:
            arrived(part)
    _wait(works[len(parts) :], deadline)
