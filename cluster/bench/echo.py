"""A bare grpc.aio server that streams one ready-made message per token: what any gateway in Python has to pay.

`python -m twinpool.cluster.bench.echo`; it prints its port and serves until its standard input ends. Knows no model, no
worker and no protocol of ours.
"""

import asyncio
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from twinpool.cluster.grpc_options import gateway_server_options

METHOD = "/twinpool.bench.Echo/Stream"
REQUEST = struct.Struct("!dI")  # seconds between messages; bytes of each, of which the request brings the content
_SERVICE, _NAME = METHOD.strip("/").split("/")


class Ticker:
    """Wakes all streams together, as a step of a worker does."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def tick(self, interval_s: float) -> None:
        """Return at the next tick; the first caller sets the pace."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run(interval_s))
        if self._next is None:
            self._next = loop.create_future()
        await asyncio.shield(self._next)

    async def _run(self, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + interval_s, loop.time())
            await asyncio.sleep(due_s - loop.time())
            waiting, self._next = self._next, None
            if waiting is not None:
                waiting.set_result(None)


async def serve() -> None:
    """Serve on a free port of this machine until standard input ends."""
    ticker = Ticker()

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:  # noqa: ARG001
        interval_s, size = REQUEST.unpack_from(request)
        message = request[REQUEST.size :][:size]
        while True:
            await ticker.tick(interval_s)
            yield message

    server = grpc.aio.server(options=gateway_server_options())
    handler = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_NAME: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(grace=0)


if __name__ == "__main__":
    asyncio.run(serve())
