"""The stream between a gateway and a worker: orders of a stream that its gateway has replaced are not obeyed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from twinpool.cluster.outbox import Outbox
from twinpool.cluster.worker_service import WorkerService
from twinpool.kv_transfer.pairing import SECRET_HEADER
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

SECRET = "0123456789abcdef"


class Heard:
    """Orders, kept."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.cancelled: list[str] = []
        self.num_detached = 0

    def hello(self) -> pb.WorkerHello:
        return pb.WorkerHello()

    def attached(self, gateway_id: str) -> Outbox:
        return self.outbox

    def detached(self, gateway_id: str, outbox: Outbox) -> None:
        assert (gateway_id, outbox) == ("g", self.outbox)
        self.num_detached += 1

    def prefill(self, gateway_id: str, order: pb.PrefillOrder) -> None:
        raise AssertionError((gateway_id, order))

    def reserve(self, gateway_id: str, order: pb.ReserveOrder) -> None:
        raise AssertionError((gateway_id, order))

    def cancel(self, gateway_id: str, request_id: str) -> None:
        assert gateway_id == "g"
        self.cancelled.append(request_id)

    def serve_pair(self, requests: AsyncIterator[pb.PeerMessage], context: Any) -> AsyncIterator[pb.PeerMessage]:
        raise AssertionError((requests, context))


class Context:
    """A call from a member of the cluster."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((SECRET_HEADER, SECRET),)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_orders_of_a_stream_that_was_replaced_are_void(is_replaced: bool) -> None:
    heard = Heard()

    async def orders() -> AsyncIterator[pb.GatewayMessage]:
        yield pb.GatewayMessage(hello=pb.AttachHello(gateway_id="g"))
        yield pb.GatewayMessage(cancel=pb.CancelOrder(request_id="first"))
        heard.outbox.is_replaced = is_replaced
        yield pb.GatewayMessage(cancel=pb.CancelOrder(request_id="second"))

    async def attach() -> None:
        async with asyncio.timeout(20):
            async for _ in WorkerService(heard, heard, SECRET).Attach(orders(), Context()):
                pass

    asyncio.run(attach())
    assert heard.cancelled == (["first"] if is_replaced else ["first", "second"])
    assert heard.num_detached == 1
