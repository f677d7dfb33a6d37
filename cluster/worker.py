"""One worker: an engine thread that computes and a control thread that talks, joined by two one-way bridges.

Control thread (asyncio): gRPC, handoffs, who asked for what. Engine thread: everything else. Knows nothing of Ray.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from twinpool.cluster.attempts import Attempts
from twinpool.cluster.block_names import Naming
from twinpool.cluster.bridge import Bridge
from twinpool.cluster.engine import Engine
from twinpool.cluster.grpc_options import worker_server_options
from twinpool.cluster.grpc_safe import add_safe
from twinpool.cluster.worker_service import WorkerService
from twinpool.core.errors import SpecError
from twinpool.core.messages import WorkerAddress, WorkerConfig
from twinpool.kv_transfer.endpoint import TransferEndpoint
from twinpool.kv_transfer.link import Links
from twinpool.model.kv_layout import KVCache
from twinpool.model.load import load_runner
from twinpool.protos.convert import address_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.protos.twinpool.v1 import worker_pb2_grpc

MakeLinks = Callable[[KVCache], Links]

TRANSFER_NEWS_S = 0.5  # between two looks at what handoffs wait for, of which gateways are told when it has changed

log = logging.getLogger(__name__)


class Worker:
    """Owns the parts of one worker, and their life. Every method runs on the control thread."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        clock: Callable[[], float],
        engine_class: type[Engine] = Engine,
        make_links: MakeLinks | None = None,
    ) -> None:
        """``make_links``: other links than the configuration names, for workers inside one process."""
        self._make_links = make_links
        self._config = config
        self._clock = clock
        self._engine_class = engine_class
        self._incarnation = secrets.token_hex(8)
        self.attempts = Attempts(clock, self._close)
        self._address: WorkerAddress | None = None
        self._closed: asyncio.Future[str] | None = None
        self._next_news: asyncio.TimerHandle | None = None

    @property
    def num_attempts(self) -> int:
        """Attempts that this worker has a part in."""
        return len(self.attempts)

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> WorkerAddress:
        """Load the model, then listen; returns the address that gateways and peers are told. Idempotent.

        Raises:
            SpecError: the model cannot be served as configured.
        """
        if self._address is not None:
            return self._address
        config, loop = self._config, asyncio.get_running_loop()
        self._closed = loop.create_future()
        self._runner = await asyncio.to_thread(load_runner, config)
        try:
            self.engine = self._engine_class(config, self._runner, Bridge(self.attempts, loop), self._clock)
        except ValueError as error:
            raise SpecError(str(error)) from None
        self._server = grpc.aio.server(options=worker_server_options())
        service = WorkerService(self.attempts, self, config.cluster_secret)
        add_safe(worker_pb2_grpc.add_WorkerServiceServicer_to_server, service, self._server)
        try:
            port = self._server.add_insecure_port(f"{config.interface}:0")
        except RuntimeError:
            raise SpecError(f"transfer.interface: {config.interface} is no address of this machine") from None
        self._address = WorkerAddress(config.worker_id, self._incarnation, f"{config.interface}:{port}")
        try:
            self._endpoint = TransferEndpoint(
                self._address,
                self._runner.cache,
                self.attempts,
                link=config.link,
                codec=config.codec,
                digest=config.digest,
                interface=config.interface,
                cluster_secret=config.cluster_secret,
                clock=self._clock,
                links=None if self._make_links is None else self._make_links(self._runner.cache),
            )
        except ValueError as error:
            self._address = None
            raise SpecError(str(error)) from None
        self.attempts.join(self.engine, self._endpoint, self._runner.cache.layout)
        await self._server.start()
        self.engine.start()
        self._tell_news()
        return self._address

    def _tell_news(self) -> None:
        self.attempts.note_transfer()
        self._next_news = asyncio.get_running_loop().call_later(TRANSFER_NEWS_S, self._tell_news)

    async def until_closed(self) -> str:
        """Return once this worker can serve no more, with the reason."""
        assert self._closed is not None
        return await asyncio.shield(self._closed)

    async def stop(self) -> None:
        """End the server, the links and the engine. Idempotent."""
        if self._address is None:
            return
        self._address = None
        if self._next_news is not None:
            self._next_news.cancel()
        await self._server.stop(grace=0.2)
        await self._endpoint.close()
        await asyncio.to_thread(self.engine.stop)
        self._close("stopped")

    def _close(self, reason: str) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(reason)

    # --- what everybody is told (worker_service.Host) -------------------------------------------------------------

    def hello(self) -> pb.WorkerHello:
        assert self._address is not None
        layout = self._runner.cache.layout
        return pb.WorkerHello(
            address=address_to_proto(self._address),
            role=str(self._config.role),
            pid=os.getpid(),
            node=socket.gethostname(),
            total_blocks=self._runner.cache.num_blocks,
            block_tokens=layout.block_tokens,
            link=self._endpoint.link_description,
            model=layout.model,
            kv_dtype=layout.dtype,
            kv_qualities=Naming.of(self._config, layout).qualities,
        )

    def serve_pair(self, requests: AsyncIterator[pb.PeerMessage], context: Any) -> AsyncIterator[pb.PeerMessage]:
        return self._endpoint.serve_pair(requests, context)

    @property
    def num_control_messages(self) -> int:
        """Orders and handoff messages heard so far; must not grow with the tokens of a request."""
        return self.attempts.num_orders + sum(link.num_messages for link in self._endpoint.stats().links)
