"""Links over torch.distributed's gloo backend.

Knows no handoffs, and leaves to group_links.py how the ends meet. A group that failed once is useless (torch closes
its connection), and one end cannot interrupt its own wait: it ends when the other end goes, or at its deadline.
"""

import importlib
import threading
import time
from datetime import timedelta
from functools import partial
from typing import Any

from twinpool.kv_transfer.group_links import GroupLinks, first_line
from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.link_thread import Wait

_NUM_TAGS = 1 << 12  # of chunks: two that differ never meet, and the tags that gloo sees are bounded


class GlooLinks(GroupLinks):
    """Makes gloo links (see GroupLinks)."""

    kind = "gloo"

    def _connect(self, store: Any, rank: int, closing: threading.Event) -> "GlooWire":  # noqa: ARG002 - gloo cannot
        backend = self._distributed.ProcessGroupGloo
        options = backend._Options()
        options._timeout = timedelta(seconds=self._open_timeout_s)
        options._threads = 1  # of collectives, which we do not use
        options._devices = [backend.create_device(hostname=self._host)]
        return GlooWire(backend(store, rank, 2, options), 1 - rank, self._chunk_timeout_s)


class GlooWire:
    """A group of two, as a Wire. Header and data of a chunk are two messages, posted together."""

    def __init__(self, group: Any, peer: int, timeout_s: float) -> None:
        self._group: Any = group
        self._peer = peer
        self._timeout_s = timeout_s

    def send(self, chunk: int, header: Bytes, data: Bytes) -> Wait:
        """See Wire."""
        return self._post("send", chunk, header, data)

    def receive(self, chunk: int, header: Bytes, data: Bytes) -> Wait:
        """See Wire. gloo takes a shorter message for a whole one, and dies of a longer: sizes must be agreed."""
        return self._post("recv", chunk, header, data)

    def _post(self, name: str, chunk: int, header: Bytes, data: Bytes) -> Wait:
        assert self._group is not None
        from_numpy = importlib.import_module("torch").from_numpy
        post = self._group.send if name == "send" else self._group.recv
        tag = 2 * (chunk % _NUM_TAGS)
        try:
            works = [post([from_numpy(part)], self._peer, tag + i) for i, part in enumerate((header, data))]
        except RuntimeError as error:
            raise LinkError(first_line(error)) from None
        return partial(_wait, works, self._timeout_s)

    def close(self) -> None:
        """See Wire."""
        self._group = None


def _wait(works: list[Any], timeout_s: float) -> None:
    """Wait for all of them within one deadline; an expired wait closes the group's connection."""
    deadline = time.monotonic() + timeout_s
    for work in works:
        try:
            work.wait(timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except RuntimeError as error:
            raise LinkError(first_line(error)) from None
