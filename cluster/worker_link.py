"""A gateway's stream to one worker: opened again by nobody, because a worker that was lost comes back as another.

Knows messages, not what they mean.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from twinpool.cluster.grpc_options import worker_channel_options
from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.pairing import SECRET_HEADER
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.protos.twinpool.v1 import worker_pb2_grpc

OnHello = Callable[[pb.WorkerHello], None]
OnStep = Callable[[str, pb.StepOutput], None]
OnLost = Callable[[WorkerAddress, str], None]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


class WorkerLink:
    """Runs until the worker is gone, then calls ``on_lost`` once."""

    def __init__(
        self,
        address: WorkerAddress,
        gateway_id: str,
        cluster_secret: str,
        *,
        on_hello: OnHello,
        on_step: OnStep,
        on_lost: OnLost,
    ) -> None:
        self.address = address
        self._gateway_id = gateway_id
        self._secret = cluster_secret
        self._on_hello, self._on_step, self._on_lost = on_hello, on_step, on_lost
        self._orders: asyncio.Queue[pb.GatewayMessage] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def send(self, message: pb.GatewayMessage) -> None:
        """Queue an order; it is lost if the worker is, which ``on_lost`` then says."""
        self._orders.put_nowait(message)

    async def close(self) -> None:
        """Hang up, without calling ``on_lost``. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        reason = "the worker ended the stream"
        try:
            async with grpc.aio.insecure_channel(self.address.address, options=worker_channel_options()) as channel:
                await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
                stub = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]
                metadata = ((SECRET_HEADER, self._secret),)
                await self._listen(stub.Attach(self._outgoing(), metadata=metadata, wait_for_ready=False))
        except TimeoutError:
            reason = f"no answer from {self.address.address} within {CONNECT_TIMEOUT_S:g} s"
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        except Exception as error:  # the outermost loop of the task: orders must not go into a queue nobody reads
            log.exception("the link to %s failed", self.address.worker_id)
            reason = f"{type(error).__name__}: {error}"
        self._on_lost(self.address, reason)

    async def _outgoing(self) -> AsyncIterator[pb.GatewayMessage]:
        yield pb.GatewayMessage(hello=pb.AttachHello(gateway_id=self._gateway_id))
        while True:
            yield await self._orders.get()

    async def _listen(self, messages: Any) -> None:
        async for message in messages:
            match message.WhichOneof("kind"):
                case "hello":
                    self._on_hello(message.hello)
                case "step":
                    self._on_step(self.address.worker_id, message.step)
