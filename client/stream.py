"""The token streams of both clients: iterate for events, leave to cancel, then ask for the result.

Knows how to wait and how to cancel; what has arrived and what it means is the exchange's.
"""

import asyncio
import time
from types import TracebackType
from typing import Any, Self

import grpc

from twinpool.client.endpoints import Endpoints
from twinpool.client.exchange import Exchange
from twinpool.client.results import GenerationResult, StreamEvent
from twinpool.client.timeout import Timeout
from twinpool.client.watchdog import Watchdog
from twinpool.core.errors import Cancelled, DeadlineExceeded
from twinpool.protos.twinpool.v1 import generation_pb2


class _OpenCall:
    """The call behind a stream, at one address after the other."""

    def __init__(self, endpoints: Endpoints, request: generation_pb2.GenerateRequest, timeout: Timeout) -> None:
        self._call: Any = None  # first of all: __del__ also runs when something below raises
        self._endpoints = endpoints
        self._request = request
        num_choices = request.sampling.n if request.sampling.HasField("n") else 1
        self._exchange = Exchange(endpoints.order(), timeout, time.monotonic(), num_choices)
        self._closed = False
        self._open()

    @property
    def request_id(self) -> str:
        """The request's id: as asked for, or as the gateway chose (empty until the first event then)."""
        return self._request.request_id or self._exchange.request_id

    @property
    def result(self) -> GenerationResult:
        """The whole answer. Raises RuntimeError while the stream has not ended, or when it was left early."""
        if self._exchange.result is None:
            raise RuntimeError("the stream has no result: it has not ended yet, was left early, or failed")
        return self._exchange.result

    def close(self) -> None:
        """Cancel the request at the server unless it has ended. Idempotent."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __del__(self) -> None:
        """A loop that was broken out of leaves nothing but this; gRPC's asyncio calls outlive their last reference."""
        self.close()

    def _open(self) -> None:
        exchange = self._exchange
        stub = self._endpoints.generation(exchange.address)
        self._call = stub.Generate(self._request, timeout=exchange.remaining_s(time.monotonic()))

    def _failed(self, error: grpc.RpcError) -> None:
        """Go to the next address, or raise; an answer that is complete does not fail any more."""
        if self._exchange.result is None:
            self._exchange.fail(error)
            self._open()

    def _accept(self, response: generation_pb2.GenerateResponse) -> StreamEvent | None:
        if not self._exchange.started:
            self._endpoints.prefer(self._exchange.address)
        return self._exchange.accept(response)


class TokenStream(_OpenCall):
    """Iterates over the events of one request; ``with`` or ``close`` cancels it when left early."""

    def __init__(
        self, endpoints: Endpoints, request: generation_pb2.GenerateRequest, timeout: Timeout, watchdog: Watchdog
    ) -> None:
        self._watchdog = watchdog
        super().__init__(endpoints, request, timeout)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        """Return the next event.

        Raises:
            StopIteration: the answer is complete (``result`` has it), or the stream was closed.
            TwinpoolError: the request failed; it has been cancelled at the server.
        """
        if self._closed:
            raise StopIteration
        try:
            return self._next_event()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_event(self) -> StreamEvent:
        while (response := self._receive()) is not None:
            event = self._accept(response)
            if event is not None:
                return event
        self._exchange.end()
        raise StopIteration

    def _receive(self) -> Any:
        while True:
            wait = self._exchange.wait
            limit = self._watchdog.limit(wait.seconds, self._call.cancel)
            try:
                with limit:
                    response = next(self._call, None)
                if response is None or not limit.expired:
                    return response
                raise DeadlineExceeded(wait.phase)  # it arrived just after the call was cancelled
            except grpc.RpcError as error:
                if limit.expired and self._exchange.result is None:
                    raise DeadlineExceeded(wait.phase) from error
                self._failed(error)
            if self._exchange.result is not None:
                return None


class AsyncTokenStream(_OpenCall):
    """``TokenStream`` for asyncio: ``async for``, ``async with``, ``aclose``. Belongs to the running event loop."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        """Return the next event; as ``TokenStream.__next__``, with StopAsyncIteration."""
        if self._closed:
            raise StopAsyncIteration
        try:
            return await self._next_event()
        except BaseException:
            self.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """Cancel the request at the server unless it has ended. Idempotent."""
        self.close()

    async def _next_event(self) -> StreamEvent:
        while (response := await self._receive()) is not None:
            event = self._accept(response)
            if event is not None:
                return event
        self._exchange.end()
        raise StopAsyncIteration

    async def _receive(self) -> Any:
        while True:
            wait = self._exchange.wait
            try:
                async with asyncio.timeout(wait.seconds):
                    response = await self._call.read()
                return None if response is grpc.aio.EOF else response
            except TimeoutError as error:
                if self._exchange.result is None:
                    raise DeadlineExceeded(wait.phase) from error
            except asyncio.CancelledError:
                if self._closed:  # by another task: a local cancel looks like this one's own
                    raise Cancelled("the stream was closed") from None
                raise
            except grpc.RpcError as error:
                self._failed(error)
            if self._exchange.result is not None:
                return None
