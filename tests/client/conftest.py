"""A gateway made for the client's tests: real sockets, real statuses, scripted answers."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

from twinpool.cluster.grpc_errors import abort
from twinpool.cluster.grpc_options import gateway_server_options
from twinpool.cluster.grpc_safe import add_safe
from twinpool.core.errors import TwinpoolError
from twinpool.protos.twinpool.v1 import cluster_pb2, cluster_pb2_grpc, generation_pb2, generation_pb2_grpc

Response = generation_pb2.GenerateResponse
STOP = generation_pb2.FINISH_REASON_STOP

# By prompt: the messages of an answer. What is not here is answered as "hello".
SCRIPTS: dict[str, list[Response]] = {
    "hello": [
        Response(request_id="g1", index=0, token_ids=[10], text="He"),
        Response(request_id="g1", index=1, token_ids=[11, 12], text=""),
        Response(request_id="g1", index=3, token_ids=[13], text="llo"),
        Response(
            request_id="g1",
            finish_reason=STOP,
            usage=generation_pb2.Usage(prompt_tokens=5, completion_tokens=4, cached_tokens=2),
            timings=generation_pb2.Timings(prefill_worker="p0", decode_worker="d0", ttft_s=0.5, kv_bytes=9, attempts=1),
        ),
    ],
    "gap": [Response(index=0, token_ids=[1]), Response(index=2, token_ids=[3])],
    "repeat": [Response(index=0, token_ids=[1, 2]), Response(index=1, token_ids=[2])],
    "no end": [Response(index=0, token_ids=[1])],
    "past the end": [Response(index=0, token_ids=[1], finish_reason=STOP), Response(index=1, token_ids=[2])],
    "unknown reason": [Response(index=0, token_ids=[1], finish_reason=9)],  # type: ignore[arg-type]
    "stall": [Response(index=0, token_ids=[1], text="a")],
    "silent": [],
}
NEVER_ENDING = ("stall", "silent", "endless")


def _for_choices(script: list[Response], num_choices: int) -> Iterator[Response]:
    """The same answer for each choice, mixed; what belongs to the last message of all stays there only."""
    for response in script:
        for choice in range(num_choices):
            mine = Response(choice=choice)
            mine.MergeFrom(response)
            if choice < num_choices - 1:
                mine.ClearField("usage")
                mine.ClearField("timings")
            yield mine


class FakeGateway:
    """Serves ``SCRIPTS`` on a thread of its own; ``error``, when set, is what every call answers."""

    def __init__(self) -> None:
        self.error: TwinpoolError | None = None
        self.requests: list[Any] = []
        self.cancelled_ids: list[str] = []
        self.deadlines_s: list[float] = []
        self.left = threading.Event()  # a client has gone before its answer was complete
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Response]:  # noqa: N802
        self.requests.append(request)
        self.deadlines_s.append(context.time_remaining())
        await self._refuse(context)
        complete = False
        try:
            script = SCRIPTS.get(request.text, [] if request.text in NEVER_ENDING else SCRIPTS["hello"])
            for response in _for_choices(script, request.sampling.n or 1):
                yield response
            if request.text == "endless":
                async for response in self._endless():
                    yield response
            if request.text in NEVER_ENDING:
                await asyncio.Event().wait()
            complete = True
        finally:
            if not complete:
                self.left.set()

    async def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._refuse(context)
        self.cancelled_ids.append(request.request_id)
        return generation_pb2.CancelResponse(found=request.request_id == "known")

    async def ListModels(self, _request: Any, context: Any) -> Any:  # noqa: N802
        await self._refuse(context)
        model = generation_pb2.Model(id="tiny", max_model_len=2048, vocab_size=512, has_tokenizer=True)
        return generation_pb2.ListModelsResponse(models=[model])

    async def GetStatus(self, _request: Any, context: Any) -> Any:  # noqa: N802
        await self._refuse(context)
        worker = cluster_pb2.WorkerStatus(id="p0", role="prefill", pid=7, free_blocks=3, total_blocks=4)
        gateway = cluster_pb2.GatewayStatus(grpc=self.address, pid=8)
        return cluster_pb2.GetStatusResponse(name="demo", model="tiny", workers=[worker], gateways=[gateway])

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _endless(self) -> AsyncIterator[Response]:
        index = 0
        while True:
            yield Response(request_id="g2", index=index, token_ids=[7], text="x")
            index += 1
            await asyncio.sleep(0.001)

    async def _refuse(self, context: Any) -> None:
        if self.error is not None:
            await abort(context, self.error)

    async def _serve(self) -> None:
        server = grpc.aio.server(options=gateway_server_options())
        add_safe(generation_pb2_grpc.add_GenerationServiceServicer_to_server, self, server)
        add_safe(cluster_pb2_grpc.add_ClusterServiceServicer_to_server, self, server)
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await server.stop(0)


@pytest.fixture
def make_gateway() -> Iterator[Callable[[], FakeGateway]]:
    started: list[FakeGateway] = []

    def make() -> FakeGateway:
        started.append(FakeGateway())
        return started[-1]

    yield make
    for gateway in started:
        gateway.close()


@pytest.fixture
def gateway(make_gateway: Callable[[], FakeGateway]) -> FakeGateway:
    return make_gateway()


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def free_address() -> str:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"
