"""Brings a cluster's workers and gateways up, replaces workers that die, and takes everything down.

Off the request path: requests go on while the controller is away. What to do about a death is decided by
router/health.py; how a process is started is the host's business (Ray in production, one event loop in tests).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from twinpool.cluster.launch import GatewayConfig, LaunchPlan
from twinpool.core.errors import Internal, TwinpoolError
from twinpool.core.messages import WorkerAddress, WorkerConfig
from twinpool.router.health import GiveUp, HealthSettings, Observation, decide

MAX_STARTS = 3

log = logging.getLogger(__name__)


class Host(Protocol):
    """Starts and ends processes. Starting one that runs already returns the running one."""

    async def start_worker(self, config: WorkerConfig) -> WorkerAddress: ...
    async def closed(self, member_id: str) -> str:
        """Return when a worker's or gateway's process is gone, with what is known of the cause."""
        ...

    async def start_gateway(self, config: GatewayConfig) -> str: ...
    async def set_workers(self, gateway_id: str, addresses: list[WorkerAddress]) -> None: ...
    async def until_ready(self, gateway_id: str, num_workers: int) -> None: ...
    async def stop(self) -> None: ...


class Controller:
    """Owns who is in the cluster; gateways follow what it says."""

    def __init__(self, plan: LaunchPlan, host: Host, clock: Callable[[], float]) -> None:
        self._plan = plan
        self._host = host
        self._clock = clock
        self._settings = HealthSettings()
        self._addresses: dict[str, WorkerAddress] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._closed: asyncio.Future[str] | None = None

    async def start(self) -> list[str]:
        """Start everything at once and wait until each gateway hears from each worker.

        Returns the gateways' gRPC addresses. On any failure everything already started is stopped.
        """
        self._closed = asyncio.get_running_loop().create_future()
        try:
            gateways = await self._start_all()
        except BaseException:
            await self.stop()
            raise
        self._cancel_watches()
        for worker in self._plan.workers:
            self._spawn(self._watch(worker.worker_id, partial(self._restart_worker, worker)))
        for gateway, address in zip(self._plan.gateways, gateways, strict=True):
            same_port = replace(gateway, grpc_port=int(address.rpartition(":")[2]))
            self._spawn(self._watch(gateway.gateway_id, partial(self._restart_gateway, same_port)))
        return gateways

    def _spawn(self, watch: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(watch)
        self._watches.add(task)
        task.add_done_callback(self._watch_ended)

    def _cancel_watches(self) -> list[asyncio.Task[None]]:
        watches, self._watches = self._watches, set()
        for task in watches:
            task.cancel()
        return list(watches)

    async def _start_all(self) -> list[str]:
        """Start what does not run. A process that dies meanwhile, as one that ran before may, is started again."""
        for left in reversed(range(MAX_STARTS)):
            try:
                return await self._start_once()
            except Internal as error:
                if not left:
                    raise
                log.warning("starting again: %s", error)
                await asyncio.sleep(self._settings.first_delay_s)
        raise AssertionError("the last start returns or raises")

    async def _start_once(self) -> list[str]:
        plan = self._plan
        try:
            async with asyncio.TaskGroup() as group:
                gateways = [group.create_task(self._host.start_gateway(config)) for config in plan.gateways]
                workers = [group.create_task(self._host.start_worker(config)) for config in plan.workers]
        except ExceptionGroup as errors:  # one cause is enough for the operator
            raise errors.exceptions[0] from None
        self._addresses = {task.result().worker_id: task.result() for task in workers}
        await self._publish()
        for config in plan.gateways:
            await self._host.until_ready(config.gateway_id, len(plan.workers))
        return [task.result() for task in gateways]

    async def until_closed(self) -> str:
        """Return once this controller can do no more, with the reason."""
        assert self._closed is not None
        return await asyncio.shield(self._closed)

    async def stop(self) -> None:
        """End every process of the cluster. Idempotent."""
        await asyncio.gather(*self._cancel_watches(), return_exceptions=True)
        await self._host.stop()
        self._close("stopped")

    def _close(self, reason: str) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(reason)

    # --- processes that die -----------------------------------------------------------------------------------------

    async def _watch(self, member_id: str, restart: Callable[[], Awaitable[None]]) -> None:
        """Replace one worker or gateway whenever its process ends, for as long as router/health.py says so."""
        restarts, started_s, is_ready = 0, self._clock(), True
        while True:
            reason = await self._host.closed(member_id) if is_ready else "it did not start"
            log.warning("%s is gone: %s", member_id, reason)
            if self._addresses.pop(member_id, None) is not None:
                await self._publish()
            seen = Observation(member_id, True, is_ready, 0.0, self._clock() - started_s, restarts)
            decision = decide([seen], self._settings)[0]
            if isinstance(decision, GiveUp):
                log.error("%s stays down: %s", member_id, decision.reason)
                return
            restarts, started_s = decision.restarts, self._clock()
            await asyncio.sleep(decision.after_s)
            try:
                await restart()
            except TwinpoolError as error:
                log.warning("%s did not start: %s", member_id, error)
                is_ready = False
            else:
                log.info("%s is back", member_id)
                is_ready = True

    async def _restart_worker(self, config: WorkerConfig) -> None:
        self._addresses[config.worker_id] = await self._host.start_worker(config)
        await self._publish()

    async def _restart_gateway(self, config: GatewayConfig) -> None:
        await self._host.start_gateway(config)
        await self._host.set_workers(config.gateway_id, self._members())
        await self._host.until_ready(config.gateway_id, len(self._addresses))

    def _watch_ended(self, task: asyncio.Task[None]) -> None:
        self._watches.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a watch failed", exc_info=error)
            self._close(f"a watch failed: {error}")

    async def _publish(self) -> None:
        """Tell every gateway who is there. One that cannot be told is dead, and hears it when it is back."""
        for gateway in self._plan.gateways:
            try:
                await self._host.set_workers(gateway.gateway_id, self._members())
            except TwinpoolError as error:
                log.warning("%s was not told of a change: %s", gateway.gateway_id, error)

    def _members(self) -> list[WorkerAddress]:
        return [self._addresses[worker_id] for worker_id in sorted(self._addresses)]
