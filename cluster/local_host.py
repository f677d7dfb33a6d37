"""A whole cluster in one process and one event loop: for tests, and for trying things out without Ray.

The same workers, gateways, gRPC and links as in production; only the processes are missing.
"""

import asyncio
from collections.abc import Callable

from twinpool.cluster.gateway import Gateway
from twinpool.cluster.launch import GatewayConfig
from twinpool.cluster.worker import MakeLinks, Worker
from twinpool.core.messages import WorkerAddress, WorkerConfig


class LocalHost:
    """See controller.Host."""

    def __init__(self, clock: Callable[[], float], make_links: MakeLinks | None = None) -> None:
        """``make_links``: see Worker."""
        self._clock = clock
        self._make_links = make_links
        self.workers: dict[str, Worker] = {}
        self.gateways: dict[str, Gateway] = {}

    async def start_worker(self, config: WorkerConfig) -> WorkerAddress:
        worker = self.workers[config.worker_id] = Worker(config, clock=self._clock, make_links=self._make_links)
        return await worker.start()

    async def closed(self, member_id: str) -> str:
        member = self.workers.get(member_id) or self.gateways[member_id]
        return await member.until_closed()

    async def start_gateway(self, config: GatewayConfig) -> str:
        gateway = self.gateways[config.gateway_id] = Gateway(config, clock=self._clock)
        return await gateway.start()

    async def set_workers(self, gateway_id: str, addresses: list[WorkerAddress]) -> None:
        self.gateways[gateway_id].set_workers(addresses)

    async def until_ready(self, gateway_id: str, num_workers: int) -> None:
        await self.gateways[gateway_id].until_ready(num_workers)

    async def stop(self) -> None:
        await asyncio.gather(*(gateway.stop() for gateway in self.gateways.values()))
        await asyncio.gather(*(worker.stop() for worker in self.workers.values()))
