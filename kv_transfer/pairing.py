"""The stream between two workers over gRPC: dialled by a source, served by a target.

Knows how to reach a worker and to notice that it is gone; not what is said.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.channel import ChannelClosed, PeerChannel
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.protos.twinpool.v1 import worker_pb2_grpc

SECRET_HEADER = "x-twinpool-cluster"  # the name of a header, not a secret

Dial = Callable[[WorkerAddress], Awaitable[PeerChannel]]

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # without it a silent peer is noticed after a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, that ends with the pair
    ("grpc.enable_http_proxy", 0),
)


def grpc_dial(cluster_secret: str) -> Dial:
    """Return how a member of the cluster that knows this secret dials its peers."""

    async def dial(address: WorkerAddress) -> PeerChannel:
        return DialledChannel(address.address, cluster_secret)

    return dial


class DialledChannel:
    """The end of a stream that called (see PeerChannel)."""

    def __init__(self, address: str, cluster_secret: str) -> None:
        self._outbox: asyncio.Queue[pb.PeerMessage | None] = asyncio.Queue()
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        stub = worker_pb2_grpc.WorkerServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._call: Any = stub.Pair(_drain(self._outbox), metadata=((SECRET_HEADER, cluster_secret),))

    def send(self, message: pb.PeerMessage) -> None:
        """See PeerChannel."""
        self._outbox.put_nowait(message)

    async def receive(self) -> pb.PeerMessage:
        """See PeerChannel."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise ChannelClosed(f"{error.code().name}: {error.details()}") from None
        if message is grpc.aio.EOF:
            raise ChannelClosed("the peer ended the stream")
        assert isinstance(message, pb.PeerMessage)
        return message

    async def close(self) -> None:
        """See PeerChannel."""
        self._outbox.put_nowait(None)
        self._call.cancel()
        await self._channel.close()


class ServedChannel:
    """The end of a stream that was called (see PeerChannel); ``outgoing`` is the answer to the call."""

    def __init__(self, requests: AsyncIterator[pb.PeerMessage]) -> None:
        self._requests = aiter(requests)
        self._outbox: asyncio.Queue[pb.PeerMessage | None] = asyncio.Queue()

    def outgoing(self) -> AsyncIterator[pb.PeerMessage]:
        """Yield what is sent, until the channel is closed."""
        return _drain(self._outbox)

    def send(self, message: pb.PeerMessage) -> None:
        """See PeerChannel."""
        self._outbox.put_nowait(message)

    async def receive(self) -> pb.PeerMessage:
        """See PeerChannel."""
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            raise ChannelClosed("the peer ended the stream") from None
        except grpc.RpcError as error:
            raise ChannelClosed(f"the stream broke: {error}") from None

    async def close(self) -> None:
        """See PeerChannel."""
        self._outbox.put_nowait(None)


async def _drain(outbox: "asyncio.Queue[pb.PeerMessage | None]") -> AsyncIterator[pb.PeerMessage]:
    while (message := await outbox.get()) is not None:
        yield message
