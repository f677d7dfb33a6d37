"""Registers a generated servicer so that bytes which are no message answer INVALID_ARGUMENT.

Without it grpc.aio answers UNKNOWN "Unexpected DecodeError" and logs a traceback for each. Knows no service: it works
on whatever handlers the generated ``add_...Servicer_to_server`` would register. The servicer's methods never see a
malformed message, and must be coroutines or async generators.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from twinpool.cluster.grpc_errors import abort
from twinpool.core.errors import InvalidRequest

Behavior = Callable[[Any, Any], Any]


def add_safe(add_to_server: Callable[[Any, Any], None], servicer: object, server: Any) -> None:
    """Register a servicer on a grpc.aio server that has not started yet.

    Args:
        add_to_server: the generated ``add_<Service>Servicer_to_server``.
        servicer: what it takes; all methods coroutines or async generators.
        server: a ``grpc.aio.Server``.

    Raises:
        TypeError: a method is neither a coroutine nor an async generator. Nothing was registered.
    """
    recorder = _Recorder()
    add_to_server(servicer, recorder)
    safe = {
        service: {name: _safe_handler(name, handler) for name, handler in handlers.items()}
        for service, handlers in recorder.services.items()
    }
    for service, handlers in safe.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        server.add_registered_method_handlers(service, handlers)


@dataclass(frozen=True, slots=True)
class _Malformed:
    reason: str


@dataclass(slots=True)
class _Recorder:
    """Stands in for the server and keeps what generated code registers."""

    services: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: object) -> None:
        """Ignore them: the same handlers come by name, too."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        self.services[service_name] = method_handlers


class _SafeContext:
    """The context of a call with a request stream, whose ``read`` refuses what is malformed."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        return await _well_formed(await self._context.read(), self._context)


def _safe_handler(name: str, handler: Any) -> Any:
    behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    is_generator = inspect.isasyncgenfunction(behavior)
    if not (is_generator or inspect.iscoroutinefunction(behavior)):
        raise TypeError(f"{name} must be a coroutine or an async generator")
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    enter = _enter_stream if handler.request_streaming else _enter_unary
    safe = _safe_generator(behavior, enter) if is_generator else _safe_coroutine(behavior, enter)
    return make(safe, _safe_deserializer(handler.request_deserializer), handler.response_serializer)


def _safe_deserializer(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, UnicodeDecodeError) as error:  # the latter from protobuf's pure Python parser
            return _Malformed(str(error))

    return parse


def _safe_generator(behavior: Behavior, enter: Behavior) -> Behavior:
    async def respond(request: Any, context: Any) -> AsyncIterator[Any]:
        request, context = await enter(request, context)
        async with aclosing(behavior(request, context)) as responses:  # closes the servicer's generator with ours
            async for response in responses:
                yield response

    return respond


def _safe_coroutine(behavior: Behavior, enter: Behavior) -> Behavior:
    async def respond(request: Any, context: Any) -> Any:
        request, context = await enter(request, context)
        return await behavior(request, context)

    return respond


async def _enter_unary(request: Any, context: Any) -> tuple[Any, Any]:
    return await _well_formed(request, context), context


async def _enter_stream(requests: AsyncIterator[Any], context: Any) -> tuple[Any, Any]:
    async def read_all() -> AsyncIterator[Any]:
        async for request in requests:
            yield await _well_formed(request, context)

    return read_all(), _SafeContext(context)


async def _well_formed(request: Any, context: Any) -> Any:
    if isinstance(request, _Malformed):
        await abort(context, InvalidRequest("request", request.reason))
    return request
