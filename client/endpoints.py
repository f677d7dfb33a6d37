"""A client's gateways: their addresses, the channel to each, and which one answered last.

Serves both clients: whether channels are sync or aio is an argument. Opens no call.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from twinpool.protos.twinpool.v1 import cluster_pb2_grpc, generation_pb2_grpc

ChannelFactory = Callable[..., Any]

MAX_PORT_DIGITS = 6  # more are out of range, too
MAX_MESSAGE_BYTES = 64 * 2**20  # logprobs of a long prompt come in one message


class Endpoints:
    """Channels made on first use; safe to share between threads."""

    def __init__(self, addresses: str | Sequence[str], connect_s: float, make_channel: ChannelFactory) -> None:
        given = [addresses] if isinstance(addresses, str) else _several(addresses)
        self._addresses = tuple(_checked(address) for address in given)
        if not self._addresses:
            raise ValueError("a client needs at least one address, as host:port")
        self._options = _channel_options(connect_s)
        self._make_channel = make_channel
        self._channels: dict[str, Any] = {}
        self._preferred = 0
        self._closed = False
        self._lock = threading.Lock()

    def order(self) -> tuple[str, ...]:
        """Return the addresses, the one that answered last first."""
        return self._addresses[self._preferred :] + self._addresses[: self._preferred]

    def prefer(self, address: str) -> None:
        """Ask this address first from now on."""
        self._preferred = self._addresses.index(address)

    def generation(self, address: str) -> Any:
        """Return a GenerationService stub. Raises RuntimeError after ``close``."""
        return generation_pb2_grpc.GenerationServiceStub(self._channel(address))  # type: ignore[no-untyped-call]

    def cluster(self, address: str) -> Any:
        """Return a ClusterService stub. Raises RuntimeError after ``close``."""
        return cluster_pb2_grpc.ClusterServiceStub(self._channel(address))  # type: ignore[no-untyped-call]

    def close(self) -> list[Any]:
        """Make no channel from now on, and return those there are, for the caller to close."""
        with self._lock:
            self._closed = True
            channels = list(self._channels.values())
            self._channels.clear()
        return channels

    def _channel(self, address: str) -> Any:
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if address not in self._channels:
                self._channels[address] = self._make_channel(address, options=self._options)
            return self._channels[address]


def _several(addresses: Sequence[str]) -> list[str]:
    if not isinstance(addresses, list | tuple):
        raise TypeError(f"addresses must be host:port or a list of those, not {addresses!r}")
    return list(addresses)


def _checked(address: str) -> str:
    if not isinstance(address, str):
        raise TypeError(f"an address must be a string, host:port, not {address!r}")
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError(f"address {address!r} must be host:port")
    if not 0 < int(port[:MAX_PORT_DIGITS]) < 2**16:
        raise ValueError(f"address {address!r} must be host:port with a port from 1 to 65535")
    return address


def _channel_options(connect_s: float) -> tuple[tuple[str, int], ...]:
    connect_ms = max(1, round(connect_s * 1000))
    return (
        ("grpc.min_reconnect_backoff_ms", connect_ms),  # how long one attempt to connect may take
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),  # a gateway that is back is found within a second
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.dns_ares_query_timeout", connect_ms),
        ("grpc.use_local_subchannel_pool", 1),  # no backoff inherited from another client of this process
        ("grpc.enable_http_proxy", 0),  # a cluster is on a private network or on this machine
    )
