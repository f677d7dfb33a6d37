"""One gateway: the services that clients reach, and a stream to every worker of the cluster.

Knows who is where; what requests do is the dispatcher's business, and who belongs to the cluster the controller's.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from twinpool.cluster.cluster_service import ClusterService, gateway_status, tenant_statuses
from twinpool.cluster.dispatch import Dispatcher
from twinpool.cluster.generation_service import GenerationService
from twinpool.cluster.grpc_options import gateway_server_options
from twinpool.cluster.grpc_safe import add_safe
from twinpool.cluster.launch import GatewayConfig
from twinpool.cluster.prefix_routing import PrefixRouting
from twinpool.cluster.request_log import RequestLog
from twinpool.cluster.request_records import RequestRecorder
from twinpool.cluster.worker_link import WorkerLink
from twinpool.core.errors import SpecError
from twinpool.core.messages import Role, WorkerAddress
from twinpool.model.shape import load_shape
from twinpool.model.tokenizer import TextTokenizer
from twinpool.protos.twinpool.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    worker_pb2,
)
from twinpool.router import settings
from twinpool.router.route import PlacementSettings
from twinpool.router.views import WorkerState, WorkerView

log = logging.getLogger(__name__)

TICK_S = 1.0
GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
CLUSTER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name


class Gateway:
    """Owns the server, the links to workers, and what this gateway knows of them."""

    def __init__(self, config: GatewayConfig, *, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._shape = load_shape(config.model, config.dtype)
        placement = placement_settings(config, self._shape.kv_token_bytes)
        self.prefixes = PrefixRouting() if placement.policy.uses_prefixes else None
        self.dispatcher = Dispatcher(
            placement,
            settings.admission_settings(config.max_queued, config.aging_s, config.tenants),
            config.max_attempts,
            send=self._send,
            clock=clock,
            cached_tokens=None if self.prefixes is None else self.prefixes.cached_tokens,
        )
        self._members: dict[str, WorkerAddress] = {}  # as the controller says
        self._links: dict[str, WorkerLink] = {}  # to those that are not lost
        self._hellos: dict[str, worker_pb2.WorkerHello] = {}
        self._transfers: dict[str, cluster_pb2.TransferMetrics] = {}  # as each worker last told
        self._pair_links: dict[str, cluster_pb2.PairLinks] = {}  # likewise
        self._lost_for: dict[str, str] = {}  # why, of workers that are lost
        self._changed = asyncio.Condition()
        self._stopped = asyncio.Event()
        self._address = ""
        self._recorder: RequestRecorder | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen; returns host:port. Health is NOT_SERVING until `until_ready` returns. Idempotent.

        Raises:
            SpecError: the tokenizer cannot be read, the port cannot be used, or the request log cannot be written.
        """
        if self._address:
            return self._address
        config = self._config
        tokenizer = TextTokenizer.load(config.model)
        self._server = grpc.aio.server(options=gateway_server_options())
        self._health = health_aio.HealthServicer()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((GENERATION, CLUSTER, reflection.SERVICE_NAME), self._server)
        self._recorder = open_recorder(config, self._clock)
        generation = GenerationService(config, self._shape, tokenizer, self.dispatcher, self._recorder)
        add_safe(generation_pb2_grpc.add_GenerationServiceServicer_to_server, generation, self._server)
        add_safe(cluster_pb2_grpc.add_ClusterServiceServicer_to_server, ClusterService(self.status), self._server)
        try:
            port = self._server.add_insecure_port(f"{config.host}:{config.grpc_port}")
        except RuntimeError:
            port = 0
        if not port:
            await self._close_recorder()
            raise SpecError(f"gateway.grpc_port: {config.host}:{config.grpc_port} cannot be used")
        await self._server.start()
        self._address = f"{config.host}:{port}"
        self._spawn(self._tick())
        return self._address

    async def until_ready(self, num_workers: int) -> None:
        """Return when so many workers said hello; from then on this gateway serves."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._hellos) >= num_workers)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def until_closed(self) -> str:
        """Return once this gateway serves no more."""
        await self._stopped.wait()
        return "stopped"

    async def stop(self) -> None:
        """Refuse new requests, end the streams, hang up. Idempotent."""
        self._stopped.set()
        if not self._address:
            return
        self._address = ""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace=0.5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(link.close() for link in self._links.values()), return_exceptions=True)
        self._links.clear()
        await self._close_recorder()

    async def _close_recorder(self) -> None:
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)  # waits for a disk

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", GENERATION, CLUSTER):
            await self._health.set(service, status)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.dispatcher.tick()
            self._connect()  # a worker that was lost without dying is a member still

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the gateway failed", exc_info=error)

    # --- workers --------------------------------------------------------------------------------------------------

    def set_workers(self, addresses: list[WorkerAddress]) -> None:
        """Connect to workers not known yet, and hang up on those that are no longer members."""
        self._members = {address.worker_id: address for address in addresses}
        for worker_id, link in list(self._links.items()):
            if self._members.get(worker_id) != link.address:
                self._drop(worker_id)
                self._spawn(link.close())
        self._connect()

    def _connect(self) -> None:
        for worker_id, address in self._members.items():
            if worker_id not in self._links:
                self._links[worker_id] = WorkerLink(
                    address,
                    self._config.gateway_id,
                    self._config.cluster_secret,
                    on_hello=self._greeted,
                    on_step=self._stepped,
                    on_lost=self._lost,
                )

    def _send(self, worker_id: str, message: worker_pb2.GatewayMessage) -> None:
        link = self._links.get(worker_id)
        if link is not None:
            link.send(message)

    def _greeted(self, hello: worker_pb2.WorkerHello) -> None:
        address = self._links[hello.address.worker_id].address
        view = view_of(hello, self._config.kinds)
        self._hellos[address.worker_id] = hello
        self._lost_for.pop(address.worker_id, None)
        if self.prefixes is not None:
            self.prefixes.joined(hello)
            self._list_cache(address.worker_id)
        self.dispatcher.table.join(view, self._clock())
        self.dispatcher.joined(address)
        self._spawn(self._announce())

    def _list_cache(self, worker_id: str) -> None:
        """Ask a worker what its prefix cache holds, and to tell what changes from then on."""
        self._send(worker_id, worker_pb2.GatewayMessage(list_cache=worker_pb2.CacheListOrder()))

    def _stepped(self, worker_id: str, output: worker_pb2.StepOutput) -> None:
        if self.prefixes is not None and output.HasField("cache") and self.prefixes.told(worker_id, output.cache):
            self._list_cache(worker_id)
        if output.HasField("view"):
            self._transfers[worker_id] = output.view.transfer
        if output.HasField("links"):
            self._pair_links[worker_id] = output.links
        self.dispatcher.stepped(worker_id, output)

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _lost(self, address: WorkerAddress, reason: str) -> None:
        link = self._links.get(address.worker_id)
        if link is not None and link.address == address:
            log.warning("lost %s: %s", address.worker_id, reason)
            self._lost_for[address.worker_id] = reason
            self._drop(address.worker_id)

    def _drop(self, worker_id: str) -> None:
        del self._links[worker_id]
        self._transfers.pop(worker_id, None)
        if self.prefixes is not None:
            self.prefixes.lost(worker_id)
        self._pair_links.pop(worker_id, None)
        if self._hellos.pop(worker_id, None) is not None:
            self.dispatcher.lost(worker_id)

    # --- status ---------------------------------------------------------------------------------------------------

    def status(self) -> cluster_pb2.GetStatusResponse:
        """What this gateway knows of the cluster."""
        ledger = self.dispatcher.ledger
        return cluster_pb2.GetStatusResponse(
            name=self._config.cluster,
            model=self._config.model_id,
            workers=[self._worker_status(worker) for worker in self.dispatcher.table.workers()],
            gateways=[gateway_status(self._address)],
            queued_requests=self.dispatcher.num_queued,
            running_requests=ledger.num_dispatched,
            tenants=tenant_statuses(self.dispatcher.waiting.tenants()),
        )

    def _worker_status(self, worker: WorkerView) -> cluster_pb2.WorkerStatus:
        hello = self._hellos.get(worker.worker_id, worker_pb2.WorkerHello())
        load = worker.load
        is_fresh = worker.state is not WorkerState.LOST and not load.version
        return cluster_pb2.WorkerStatus(
            id=worker.worker_id,
            role=str(worker.role),
            pid=hello.pid,
            node=hello.node,
            state=str(worker.state),
            free_blocks=worker.total_blocks if is_fresh else load.free_blocks,
            total_blocks=worker.total_blocks,
            running=load.running,
            waiting=load.waiting_prefills + load.reservations,
            parked_blocks=load.parked_blocks,
            cause=self._lost_for.get(worker.worker_id, load.cause),
            link=hello.link,
            transfer=self._transfers.get(worker.worker_id),
            links=self._pair_links.get(worker.worker_id, cluster_pb2.PairLinks()).links,
        )


def open_recorder(config: GatewayConfig, clock: Callable[[], float]) -> RequestRecorder | None:
    """What notes this gateway's requests, where the cluster's YAML asks for it. Raises SpecError."""
    if not config.request_log:
        return None
    request_log = RequestLog(config.request_log)
    return RequestRecorder(request_log, secret=config.cluster_secret, clock=clock, unix_clock=time.time)


def view_of(hello: worker_pb2.WorkerHello, kinds: Mapping[Role, str]) -> WorkerView:
    """A worker as it greets; its kind is that of the role it has now."""
    return WorkerView(
        worker_id=hello.address.worker_id,
        incarnation=hello.address.incarnation,
        role=Role(hello.role),
        total_blocks=hello.total_blocks,
        block_tokens=hello.block_tokens,
        kind=kinds.get(Role(hello.role), ""),
    )


def placement_settings(config: GatewayConfig, kv_token_bytes: int) -> PlacementSettings:
    """The router's knobs as the launcher passed them on."""
    return settings.placement_settings(
        policy=config.policy,
        disaggregate=config.disaggregate,
        on_prefill_loss=config.on_prefill_loss,
        latencies=config.latencies,
        kv_token_bytes=kv_token_bytes,
        chunk_tokens=config.chunk_tokens,
    )
