"""Links over torch.distributed's gloo backend: one standalone group of two ranks for each link, with no default world.

The receiver hosts the store where the two meet, on one interface only. Knows no handoffs. A group that failed once is
useless (torch closes its connection), and one end cannot interrupt its own wait: it ends when the other end goes, or at
its deadline.
"""

import importlib
import ipaddress
import re
import secrets
import socket
import time
from datetime import timedelta
from functools import partial
from typing import Any

from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import CHUNK_BYTES, LinkError, LinkEvents, Ticket
from twinpool.kv_transfer.link_thread import ReceiveThread, SendThread, Wait
from twinpool.model.kv_layout import KVCache

SOURCE, TARGET = 0, 1  # ranks
SECRET_BYTES = 16
_NUM_TAGS = 1 << 12  # of chunks: two that differ never meet, and the tags that gloo sees are bounded


class GlooLinks:
    """Makes gloo links over one network interface.

    Args:
        host: the IP address, of this machine, that stores and connections listen on.
        digest: whether senders take digests and receivers insist on them.
        open_timeout_s: for the two ends to meet.
        chunk_timeout_s: for one chunk; also bounds how long a closed link's thread may linger.

    Raises:
        ValueError: ``host`` is no address, or stands for every interface.
    """

    kind = "gloo"

    def __init__(
        self,
        cache: KVCache,
        host: str,
        *,
        why: str = "",
        digest: bool = True,
        open_timeout_s: float = 10.0,
        chunk_timeout_s: float = 5.0,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        if ipaddress.ip_address(host).is_unspecified:
            raise ValueError(f"transfer.interface must be one interface's address, not {host}")
        self._distributed = importlib.import_module("torch.distributed")  # takes seconds; only workers with gloo pay
        self.why = why
        self._cache = cache
        self._host = host
        self._digest = digest
        self._open_timeout_s = open_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        self._chunk_bytes = chunk_bytes

    def listen(self, events: LinkEvents) -> tuple[ReceiveThread, Ticket]:
        """See Links."""
        try:
            store, port = self._host_store()
        except (OSError, RuntimeError) as error:
            raise LinkError(f"cannot listen on {self._host}: {_first_line(error)}") from None
        secret = secrets.token_bytes(SECRET_BYTES)
        open_wire = partial(self._meet, [store], secret, TARGET)
        link = ReceiveThread(open_wire, self._cache, events, digest=self._digest, chunk_bytes=self._chunk_bytes)
        return link, Ticket(self._host, port, secret)

    def dial(self, ticket: Ticket, events: LinkEvents) -> SendThread:
        """See Links."""
        open_wire = partial(self._dial, ticket)
        return SendThread(open_wire, self._cache, events, digest=self._digest, chunk_bytes=self._chunk_bytes)

    def _host_store(self) -> tuple[Any, int]:
        """Begin a store that listens on our interface; given a port alone it would listen on every one."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((self._host, 0))
            listener.listen()
            port: int = listener.getsockname()[1]
            store = self._distributed.TCPStore(
                self._host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=self._open_timeout_s),
                master_listen_fd=listener.detach(),
            )
        return store, port

    def _dial(self, ticket: Ticket) -> "GlooWire":
        timeout = timedelta(seconds=self._open_timeout_s)
        try:
            store = self._distributed.TCPStore(
                ticket.host, ticket.port, is_master=False, wait_for_workers=False, timeout=timeout
            )
        except RuntimeError as error:
            raise LinkError(f"no store at {ticket.host}:{ticket.port}: {_first_line(error)}") from None
        return self._meet([store], ticket.secret, SOURCE)

    def _meet(self, stores: list[Any], secret: bytes, rank: int) -> "GlooWire":
        """Connect to the other rank. Takes the store out of ``stores``, so that it lives no longer than the group."""
        backend = self._distributed.ProcessGroupGloo
        options = backend._Options()
        options._timeout = timedelta(seconds=self._open_timeout_s)
        options._threads = 1  # of collectives, which we do not use
        try:
            options._devices = [backend.create_device(hostname=self._host)]
            group = backend(self._distributed.PrefixStore(secret.hex(), stores.pop()), rank, 2, options)
        except RuntimeError as error:
            raise LinkError(f"the other end did not come to the link: {_first_line(error)}") from None
        return GlooWire(group, 1 - rank, self._chunk_timeout_s)


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
            raise LinkError(_first_line(error)) from None
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
            raise LinkError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    """What went wrong, without the place in torch's sources and its guess at the cause."""
    text = str(error).partition("\n")[0].partition(" This is typically")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", text)[:300]
