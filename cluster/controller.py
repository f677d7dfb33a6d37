"""Brings a cluster's workers and gateways up, replaces workers that die, and takes everything down.

Off the request path: requests go on while the controller is away. What to do about a death is decided by
router/health.py; how a process is started is the host's business (Ray in production, one event loop in tests).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from twinpool.cluster.launch import GatewayConfig, LaunchPlan
from twinpool.core.errors import TwinpoolError
from twinpool.core.messages import WorkerAddress, WorkerConfig
from twinpool.router.health import GiveUp, HealthSettings, Observation, decide

log = logging.getLogger(__name__)


class Host(Protocol):
    """Starts and ends processes. Starting one that runs already returns the running one."""

    async def start_worker(self, config: WorkerConfig) -> WorkerAddress: ...
    async def worker_closed(self, worker_id: str) -> str:
        """Return when the worker's process is gone, with what is known of the cause."""
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
        for worker in self._plan.workers:
            task = asyncio.create_task(self._watch(worker))
            self._watches.add(task)
            task.add_done_callback(self._watch_ended)
        return gateways

    async def _start_all(self) -> list[str]:
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
        watches, self._watches = self._watches, set()
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await self._host.stop()
        self._close("stopped")

    def _close(self, reason: str) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(reason)

    # --- workers that die -----------------------------------------------------------------------------------------

    async def _watch(self, config: WorkerConfig) -> None:
        """Replace one worker whenever its process ends, for as long as router/health.py says so."""
        worker_id, restarts, started_s, is_ready = config.worker_id, 0, self._clock(), True
        while True:
            reason = await self._host.worker_closed(worker_id) if is_ready else "it did not start"
            log.warning("%s is gone: %s", worker_id, reason)
            self._addresses.pop(worker_id, None)
            await self._publish()
            seen = Observation(worker_id, True, is_ready, 0.0, self._clock() - started_s, restarts)
            decision = decide([seen], self._settings)[0]
            if isinstance(decision, GiveUp):
                log.error("%s stays down: %s", worker_id, decision.reason)
                return
            restarts, started_s = decision.restarts, self._clock()
            await asyncio.sleep(decision.after_s)
            is_ready = await self._restart(config)

    async def _restart(self, config: WorkerConfig) -> bool:
        try:
            self._addresses[config.worker_id] = await self._host.start_worker(config)
        except TwinpoolError as error:
            log.warning("%s did not start: %s", config.worker_id, error)
            return False
        await self._publish()
        log.info("%s is back", config.worker_id)
        return True

    def _watch_ended(self, task: asyncio.Task[None]) -> None:
        self._watches.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a watch failed", exc_info=error)
            self._close(f"a watch failed: {error}")

    async def _publish(self) -> None:
        addresses = [self._addresses[worker_id] for worker_id in sorted(self._addresses)]
        for gateway in self._plan.gateways:
            await self._host.set_workers(gateway.gateway_id, addresses)
