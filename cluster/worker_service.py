"""The gRPC face of a worker: one stream for each gateway, one for each worker that hands KV to it.

Knows who may speak and in what order; what the words do is the worker's business.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from twinpool.cluster.outbox import Outbox
from twinpool.core.errors import TwinpoolError
from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.pairing import SECRET_HEADER
from twinpool.model.sequence import Key
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.protos.twinpool.v1 import worker_pb2_grpc

log = logging.getLogger(__name__)


class Orders(Protocol):
    """What gateways ask of a worker. Called on the control thread; none may block."""

    def attached(self, gateway_id: str) -> Outbox: ...
    def detached(self, gateway_id: str, outbox: Outbox) -> None: ...
    def prefill(self, gateway_id: str, order: pb.PrefillOrder) -> None: ...
    def reserve(self, gateway_id: str, order: pb.ReserveOrder) -> None: ...
    def cancel(self, gateway_id: str, request_id: str) -> None: ...
    def list_cache(self, gateway_id: str) -> None: ...


class Host(Protocol):
    """What a worker says of itself, and what it hears as the target of handoffs."""

    def hello(self) -> pb.WorkerHello: ...
    def serve_pair(self, requests: AsyncIterator[pb.PeerMessage], context: Any) -> AsyncIterator[pb.PeerMessage]: ...


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Checks the cluster's secret, then passes messages on."""

    def __init__(self, orders: Orders, host: Host, cluster_secret: str) -> None:
        self._orders = orders
        self._host = host
        self._secret = cluster_secret

    async def Attach(  # noqa: N802 - named by the protocol
        self, requests: AsyncIterator[pb.GatewayMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        await self._check_secret(context)
        gateway_id = await self._read_hello(requests, context)
        outbox = self._orders.attached(gateway_id)
        reader = asyncio.create_task(self._read(gateway_id, requests, outbox))
        try:
            yield pb.WorkerMessage(hello=self._host.hello())
            while not reader.done():
                output = await _first_of(outbox, reader)
                if output is not None:
                    yield pb.WorkerMessage(step=output)
            reader.result()
        finally:
            reader.cancel()
            self._orders.detached(gateway_id, outbox)

    async def _read_hello(self, requests: AsyncIterator[pb.GatewayMessage], context: Any) -> str:
        async for message in requests:
            if message.WhichOneof("kind") == "hello":
                return message.hello.gateway_id
            break
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be hello")
        raise AssertionError("abort raises")

    async def _read(self, gateway_id: str, requests: AsyncIterator[pb.GatewayMessage], outbox: Outbox) -> None:
        async for message in requests:
            if outbox.is_replaced:
                return
            try:
                self._obey(gateway_id, message)
            except TwinpoolError as error:  # a malformed order fails its own request, not the gateway's stream
                log.error("order of %s refused: %s", gateway_id, error)
                order = message.prefill if message.HasField("prefill") else message.reserve
                key = Key(order.request.request_id, order.request.epoch)
                outbox.add_failure(key, FailureKind.INTERNAL, f"the worker refused the order: {error}")

    def _obey(self, gateway_id: str, message: pb.GatewayMessage) -> None:
        match message.WhichOneof("kind"):
            case "prefill":
                self._orders.prefill(gateway_id, message.prefill)
            case "reserve":
                self._orders.reserve(gateway_id, message.reserve)
            case "cancel":
                self._orders.cancel(gateway_id, message.cancel.request_id)
            case "list_cache":
                self._orders.list_cache(gateway_id)

    async def Pair(  # noqa: N802 - named by the protocol
        self, requests: AsyncIterator[pb.PeerMessage], context: Any
    ) -> AsyncIterator[pb.PeerMessage]:
        await self._check_secret(context)
        async for message in self._host.serve_pair(requests, context):
            yield message

    async def _check_secret(self, context: Any) -> None:
        given = dict(context.invocation_metadata()).get(SECRET_HEADER, "")
        if not hmac.compare_digest(given.encode(), self._secret.encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a member of this cluster")


async def _first_of(outbox: Outbox, reader: asyncio.Task[None]) -> pb.StepOutput | None:
    take = asyncio.create_task(outbox.take())
    try:
        await asyncio.wait((take, reader), return_when=asyncio.FIRST_COMPLETED)
        return take.result() if take.done() else None
    finally:
        take.cancel()
