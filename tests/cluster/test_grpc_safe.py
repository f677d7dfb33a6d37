"""Malformed bytes answer INVALID_ARGUMENT, reach no handler, and leave the server serving."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from twinpool.cluster.grpc_safe import add_safe
from twinpool.protos.twinpool.v1 import generation_pb2, generation_pb2_grpc, worker_pb2, worker_pb2_grpc

GENERATE = "/twinpool.v1.GenerationService/Generate"
CANCEL = "/twinpool.v1.GenerationService/Cancel"
ATTACH = "/twinpool.v1.WorkerService/Attach"
PAIR = "/twinpool.v1.WorkerService/Pair"
BAD_UTF8 = b"\x0a\x01\xff"


class Generation(generation_pb2_grpc.GenerationServiceServicer):  # type: ignore[misc]
    """Answers well-formed requests and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.closed = threading.Event()

    async def Generate(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.seen.append(request)
        try:
            for index in range(3):
                yield generation_pb2.GenerateResponse(request_id=request.request_id, index=index)
            if request.request_id == "endless":
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def Cancel(self, request: Any, _context: Any) -> Any:  # noqa: N802
        self.seen.append(request)
        return generation_pb2.CancelResponse(found=True)

    async def ListModels(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return generation_pb2.ListModelsResponse()


class Worker(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]
    """Echoes ids: Attach reads its iterator, Pair reads its context."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def Attach(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            self.seen.append(request)
            yield worker_pb2.WorkerMessage(hello=worker_pb2.WorkerHello(node=request.hello.gateway_id))

    async def Pair(self, _requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        while (message := await context.read()) is not grpc.aio.EOF:
            self.seen.append(message)
            await context.write(message)


class Fixture:
    """One live server for all tests of this file, on a thread of its own."""

    def __init__(self) -> None:
        self.generation, self.worker = Generation(), Worker()
        self._ready, self._stop = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    async def _serve(self) -> None:
        server = grpc.aio.server()
        add_safe(generation_pb2_grpc.add_GenerationServiceServicer_to_server, self.generation, server)
        add_safe(worker_pb2_grpc.add_WorkerServiceServicer_to_server, self.worker, server)
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await server.stop(0)

    def close(self) -> None:
        self.channel.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def unary_stream(self, data: bytes) -> list[Any]:
        return list(self.channel.unary_stream(GENERATE)(data, timeout=10))

    def unary(self, method: str, data: bytes) -> bytes:
        return bytes(self.channel.unary_unary(method)(data, timeout=10))

    def stream(self, method: str, messages: list[bytes]) -> list[Any]:
        return list(self.channel.stream_stream(method)(iter(messages), timeout=10))


@pytest.fixture(scope="module")
def live() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.close()


def is_well_formed(kind: Any, data: bytes) -> bool:
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True


def refusal(caught: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    assert caught.value.details().startswith("request: ")
    return caught.value.code()


@given(data=st.binary(max_size=64) | st.binary(max_size=32).map(lambda tail: b"\x0a\x02\xc3\x28" + tail))
def test_any_bytes_are_served_or_refused_as_invalid_and_the_server_lives(live: Fixture, data: bytes) -> None:
    seen = len(live.generation.seen)
    if is_well_formed(generation_pb2.GenerateRequest, data):
        if generation_pb2.GenerateRequest.FromString(data).request_id != "endless":
            assert len(live.unary_stream(data)) == 3
        return
    with pytest.raises(grpc.RpcError) as caught:
        live.unary_stream(data)
    assert refusal(caught) is grpc.StatusCode.INVALID_ARGUMENT
    assert len(live.generation.seen) == seen


@given(messages=st.lists(st.binary(max_size=24), min_size=1, max_size=4))
@pytest.mark.parametrize(
    ("method", "kind"), [(ATTACH, worker_pb2.GatewayMessage), (PAIR, worker_pb2.PeerMessage)], ids=["Attach", "Pair"]
)
def test_any_bytes_in_a_stream_are_served_or_refused_as_invalid(
    live: Fixture, method: str, kind: Any, messages: list[bytes]
) -> None:
    well_formed = [is_well_formed(kind, data) for data in messages]
    seen = len(live.worker.seen)
    if all(well_formed):
        assert len(live.stream(method, messages)) == len(messages)
        return
    with pytest.raises(grpc.RpcError) as caught:
        live.stream(method, messages)
    assert refusal(caught) is grpc.StatusCode.INVALID_ARGUMENT
    assert len(live.worker.seen) == seen + well_formed.index(False)


@pytest.mark.parametrize("data", [BAD_UTF8, b"\xff\xff", b"\x0a\x7f"])
def test_a_unary_call_with_malformed_bytes_is_refused(live: Fixture, data: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        live.unary(CANCEL, data)
    assert refusal(caught) is grpc.StatusCode.INVALID_ARGUMENT
    good = generation_pb2.CancelRequest(request_id="r").SerializeToString()
    assert generation_pb2.CancelResponse.FromString(live.unary(CANCEL, good)).found


def test_a_client_that_leaves_closes_the_handlers_own_generator(live: Fixture) -> None:
    live.generation.closed.clear()
    request = generation_pb2.GenerateRequest(request_id="endless").SerializeToString()
    call = live.channel.unary_stream(GENERATE)(request, timeout=10)
    next(call)
    call.cancel()
    assert live.generation.closed.wait(5)


def test_a_blocking_method_is_refused_at_registration() -> None:
    class Blocking(generation_pb2_grpc.GenerationServiceServicer):  # type: ignore[misc]
        """Every method is inherited, and none is a coroutine."""

    with pytest.raises(TypeError, match="Generate must be"):
        add_safe(generation_pb2_grpc.add_GenerationServiceServicer_to_server, Blocking(), object())
