"""Ray actors: shells of one-line methods around plain classes that are tested without Ray.

No retries and no restarts by Ray: KV dies with the process, and the controller decides what follows. All of them ask
for 0.01 CPU, so that a small machine can place them; what they really use is set by `threads` and `cores`.
"""

import time
from typing import Any

import ray

from twinpool.cluster.affinity import pin_process
from twinpool.cluster.gateway import Gateway
from twinpool.cluster.launch import GatewayConfig
from twinpool.cluster.worker import Worker
from twinpool.core.messages import WorkerAddress, WorkerConfig

NAMESPACE = "twinpool"
OPTIONS: dict[str, Any] = {
    "num_cpus": 0.01,
    "max_restarts": 0,
    "max_task_retries": 0,
    "lifetime": "detached",
    "namespace": NAMESPACE,
}


@ray.remote
class WorkerActor:
    """One rank of one worker."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._worker = Worker(config, clock=time.monotonic)

    async def start(self) -> WorkerAddress:
        pin_process(self._config.cores)
        return await self._worker.start()

    async def until_closed(self) -> str:
        return await self._worker.until_closed()

    async def stop(self) -> None:
        await self._worker.stop()


@ray.remote
class GatewayActor:
    """One gateway."""

    def __init__(self, config: GatewayConfig) -> None:
        self._gateway = Gateway(config, clock=time.monotonic)

    async def start(self) -> str:
        return await self._gateway.start()

    async def until_closed(self) -> str:
        return await self._gateway.until_closed()

    async def set_workers(self, addresses: list[WorkerAddress]) -> None:
        self._gateway.set_workers(addresses)

    async def until_ready(self, num_workers: int) -> None:
        await self._gateway.until_ready(num_workers)

    async def stop(self) -> None:
        await self._gateway.stop()
