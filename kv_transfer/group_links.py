"""Links over standalone groups of two ranks of torch.distributed, one group for each link, with no default world.

The receiver hosts the store where the two ends meet, on one interface only. Knows no handoffs, and not what moves the
bytes: a kind of group makes the wire.
"""

import copy
import importlib
import ipaddress
import re
import secrets
import socket
import threading
from abc import ABC, abstractmethod
from datetime import timedelta
from functools import partial
from typing import Any, Self, TypedDict, Unpack

from twinpool.kv_transfer.chunk_wire import Wire
from twinpool.kv_transfer.link import CHUNK_BYTES, LinkError, LinkEvents, Ticket
from twinpool.kv_transfer.link_thread import LinkThread, ReceiveThread, SendThread
from twinpool.model.kv_layout import KVCache

SOURCE, TARGET = 0, 1  # ranks
SECRET_BYTES = 16


class GroupOptions(TypedDict, total=False):
    """What may be said of links over groups; defaults are in GroupLinks."""

    why: str  # the kind was chosen, for people
    digest: bool  # whether senders take digests and receivers insist on them
    open_timeout_s: float  # for the two ends to meet
    chunk_timeout_s: float  # for one chunk; also bounds how long a closed link's thread may linger
    chunk_bytes: int


class GroupLinks(ABC):
    """Makes links of one kind over one network interface.

    Args:
        host: the IP address, of this machine, that stores and connections listen on.

    Raises:
        ValueError: ``host`` is no address, or stands for every interface.
    """

    kind: str

    def __init__(self, cache: KVCache, host: str, **options: Unpack[GroupOptions]) -> None:
        if ipaddress.ip_address(host).is_unspecified:
            raise ValueError(f"transfer.interface must be one interface's address, not {host}")
        self._distributed = importlib.import_module("torch.distributed")  # takes seconds; only workers with it pay
        self.why = options.get("why", "")
        self._cache = cache
        self._host = host
        self._digest = options.get("digest", True)
        self._open_timeout_s = options.get("open_timeout_s", 10.0)
        self._chunk_timeout_s = options.get("chunk_timeout_s", 5.0)
        self.chunk_bytes = options.get("chunk_bytes", CHUNK_BYTES)

    def cut_at(self, chunk_bytes: int) -> Self:
        """The same links, with chunks of this size at most."""
        links = copy.copy(self)
        links.chunk_bytes = chunk_bytes
        return links

    def listen(self, events: LinkEvents) -> tuple[ReceiveThread, Ticket]:
        """See Links. What cannot be told at once, that there is no store behind the port, comes by ``on_error``."""
        try:
            listener = self._listen()
        except OSError as error:
            raise LinkError(f"cannot listen on {self._host}: {error.strerror or error}") from None
        port: int = listener.getsockname()[1]
        secret = secrets.token_bytes(SECRET_BYTES)
        closing = threading.Event()
        open_wire = partial(self._host_store, listener, secret, closing)
        link = _Receiver(closing, open_wire, self._cache, events, digest=self._digest, chunk_bytes=self.chunk_bytes)
        return link, Ticket(self._host, port, secret)

    def dial(self, ticket: Ticket, events: LinkEvents) -> SendThread:
        """See Links."""
        closing = threading.Event()
        open_wire = partial(self._dial, ticket, closing)
        return _Sender(closing, open_wire, self._cache, events, digest=self._digest, chunk_bytes=self.chunk_bytes)

    @abstractmethod
    def _connect(self, store: Any, rank: int, closing: threading.Event) -> Wire:
        """Join the group of two whose ranks meet in ``store``; wait for the other for ``open_timeout_s`` at most.

        Args:
            closing: set when the link is closed, so that a wire which can end its waits early does.

        Raises:
            RuntimeError: what torch raises when the other rank does not come.
            LinkError: the two must not be joined.
        """

    def _listen(self) -> socket.socket:
        """A socket of our interface for a store, which with a port alone would listen on every one."""
        listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind((self._host, 0))
            listener.listen()
        except OSError:
            listener.close()
            raise
        return listener

    def _host_store(self, listener: socket.socket, secret: bytes, closing: threading.Event) -> Wire:
        """Make the store where the source comes to, and wait for it there.

        On the link's own thread: torch looks the addresses' names up, which may take seconds.
        """
        with listener:
            port: int = listener.getsockname()[1]
            try:
                store = self._distributed.TCPStore(
                    self._host,
                    port,
                    is_master=True,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=self._open_timeout_s),
                    master_listen_fd=listener.detach(),  # the store's, which closes it even where the rest fails
                )
            except RuntimeError as error:
                raise LinkError(f"no store at {self._host}:{port}: {first_line(error)}") from None
        stores = [store]
        del store
        return self._meet(stores, secret, TARGET, closing)

    def _dial(self, ticket: Ticket, closing: threading.Event) -> Wire:
        timeout = timedelta(seconds=self._open_timeout_s)
        try:
            store = self._distributed.TCPStore(
                ticket.host, ticket.port, is_master=False, wait_for_workers=False, timeout=timeout
            )
        except RuntimeError as error:
            raise LinkError(f"no store at {ticket.host}:{ticket.port}: {first_line(error)}") from None
        return self._meet([store], ticket.secret, SOURCE, closing)

    def _meet(self, stores: list[Any], secret: bytes, rank: int, closing: threading.Event) -> Wire:
        """Connect to the other rank. Takes the store out of ``stores``, so that it lives no longer than the group."""
        if closing.is_set():
            raise LinkError("the link was closed")
        try:
            return self._connect(self._distributed.PrefixStore(secret.hex(), stores.pop()), rank, closing)
        except RuntimeError as error:
            raise LinkError(f"the other end did not come to the link: {first_line(error)}") from None


class _TellsWire(LinkThread):
    """A link's thread whose wire hears of ``close`` while it waits."""

    def __init__(self, closing: threading.Event, *args: Any, **kwargs: Any) -> None:
        self._closing = closing
        super().__init__(*args, **kwargs)

    def close(self) -> None:
        """See Link."""
        super().close()
        self._closing.set()


class _Sender(_TellsWire, SendThread):
    pass


class _Receiver(_TellsWire, ReceiveThread):
    pass


def first_line(error: Exception) -> str:
    """What went wrong, without the place in torch's sources and its guess at the cause."""
    text = str(error).partition("\n")[0].partition(" This is typically")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", text)[:300]
