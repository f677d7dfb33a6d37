"""A whole cluster in the test's own process: real workers, gateway, gRPC and links; no Ray."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from twinpool.client.client import AsyncClient
from twinpool.cluster.controller import Controller
from twinpool.cluster.gateway import Gateway
from twinpool.cluster.launch import GatewayConfig, LaunchPlan
from twinpool.cluster.local_host import LocalHost
from twinpool.cluster.worker import MakeLinks, Worker
from twinpool.core.messages import Goal, Role, WorkerConfig

SECRET = "0123456789abcdef"
BLOCK_TOKENS = 8


@dataclass
class LocalCluster:
    """What a test may look into."""

    client: AsyncClient
    host: LocalHost
    addresses: list[str]

    @property
    def workers(self) -> dict[str, Worker]:
        return self.host.workers

    @property
    def gateway(self) -> Gateway:
        return self.host.gateways["gateway-0"]

    async def assert_idle(self, timeout_s: float = 5.0) -> None:
        """No request, block, handoff or queue entry is left anywhere, at the latest after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while left := self._left_behind():
            assert time.monotonic() < deadline, f"left behind: {left}"
            await asyncio.sleep(0.01)
        for worker in self.workers.values():
            worker.engine.pool.check()

    def count_control_messages(self) -> int:
        """Orders and handoff messages that all workers heard so far."""
        return sum(worker.num_control_messages for worker in self.workers.values())

    def _left_behind(self) -> list[str]:
        left = [f"{w.num_attempts} attempts on {name}" for name, w in self.workers.items() if w.num_attempts]
        left += [f"blocks held on {name}" for name, w in self.workers.items() if not w.engine.pool.is_idle]
        left += [f"work on {name}" for name, w in self.workers.items() if not w.engine.is_idle]
        if self.gateway.dispatcher.num_open:
            left.append(f"{self.gateway.dispatcher.num_open} requests at the gateway")
        return left


def make_plan(
    prefill: int = 1, decode: int = 1, mixed: int = 0, *, worker: dict[str, object] | None = None, **gateway: object
) -> LaunchPlan:
    """A launch plan as the launcher would make it, small."""
    worker_values: dict[str, object] = {
        "model": "modelled:instant",
        "max_model_len": 512,
        "kv_bytes": 1 << 20,
        "block_tokens": BLOCK_TOKENS,
        "chunk_tokens": 64,
        "cluster_secret": SECRET,
    } | (worker or {})
    counts = {Role.PREFILL: prefill, Role.DECODE: decode, Role.MIXED: mixed}
    workers = tuple(
        WorkerConfig(worker_id=f"{role}-{index}", role=role, **worker_values)  # type: ignore[arg-type]
        for role, count in counts.items()
        for index in range(count)
    )
    gateway_values: dict[str, object] = {
        "gateway_id": "gateway-0",
        "cluster": "test",
        "host": "127.0.0.1",
        "grpc_port": 0,
        "model": worker_values["model"],
        "model_id": "test-model",
        "max_model_len": worker_values["max_model_len"],
        "dtype": worker_values.get("dtype", "auto"),
        "goals": {"default": Goal(10.0, 1.0), "batch": Goal(60.0, 1.0)},
        "priorities": {"default": 0, "batch": 1},
        "policy": "slo",
        "disaggregate": "always" if prefill else "when_cheaper",
        "on_prefill_loss": "local",
        "max_queued": 1024,
        "max_attempts": 3,
        "chunk_tokens": worker_values["chunk_tokens"],
        "cluster_secret": SECRET,
    } | gateway
    return LaunchPlan("test", workers, (GatewayConfig(**gateway_values),), "local", 0)  # type: ignore[arg-type]


@asynccontextmanager
async def running(plan: LaunchPlan, make_links: MakeLinks | None = None) -> AsyncIterator[LocalCluster]:
    """The cluster, up; and down again, with nothing left, when the block ends."""
    host = LocalHost(time.monotonic, make_links)
    controller = Controller(plan, host, time.monotonic)
    addresses = await controller.start()
    try:
        async with AsyncClient(addresses) as client:
            yield LocalCluster(client, host, addresses)
    finally:
        await controller.stop()
