"""The controller with processes that die while it starts."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from twinpool.cluster.controller import MAX_STARTS, Controller
from twinpool.cluster.launch import GatewayConfig, plan_launch
from twinpool.cluster.supervisor import _at_ports
from twinpool.core.errors import Internal, SpecError, TwinpoolError
from twinpool.core.messages import WorkerAddress, WorkerConfig

SPEC = """
name: frail
model: {path: "modelled:instant", max_model_len: 64}
pools: {mixed: {workers: 1}}
gateway: {grpc_port: 0, http_port: 0}
"""


class FrailHost:
    """Its gateway dies the first so many times that it is started."""

    def __init__(self, num_deaths: int, error: TwinpoolError) -> None:
        self.num_starts = 0
        self.is_stopped = False
        self._num_deaths = num_deaths
        self._error = error

    async def start_worker(self, config: WorkerConfig) -> WorkerAddress:
        return WorkerAddress(config.worker_id, "1", "127.0.0.1:1")

    async def closed(self, member_id: str) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async def start_gateway(self, config: GatewayConfig) -> str:
        self.num_starts += 1
        if self.num_starts <= self._num_deaths:
            raise self._error
        return "127.0.0.1:7070"

    async def set_workers(self, gateway_id: str, addresses: list[WorkerAddress]) -> None: ...

    async def until_ready(self, gateway_id: str, num_workers: int) -> None: ...

    async def stop(self) -> None:
        self.is_stopped = True


async def start(folder: Path, host: FrailHost) -> list[str]:
    path = folder / "frail.yaml"
    path.write_text(SPEC)
    controller = Controller(plan_launch(path), host, time.monotonic)
    try:
        return await controller.start()
    finally:
        if not host.is_stopped:
            await controller.stop()


def test_a_gateway_that_dies_while_the_controller_starts_is_started_again(tmp_path: Path) -> None:
    host = FrailHost(MAX_STARTS - 1, Internal("the actor died"))
    assert asyncio.run(start(tmp_path, host)) == ["127.0.0.1:7070"]
    assert host.num_starts == MAX_STARTS


@pytest.mark.parametrize(("error", "num_starts"), [(Internal("the actor died"), MAX_STARTS), (SpecError("no"), 1)])
def test_what_cannot_start_ends_the_start_with_its_error(tmp_path: Path, error: TwinpoolError, num_starts: int) -> None:
    host = FrailHost(99, error)
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(start(tmp_path, host))
    assert host.num_starts == num_starts
    assert host.is_stopped


def test_a_new_controller_brings_gateways_back_at_the_ports_that_clients_know(tmp_path: Path) -> None:
    path = tmp_path / "frail.yaml"
    path.write_text(SPEC)
    plan = plan_launch(path)
    assert plan.gateways[0].grpc_port == 0
    assert _at_ports(plan, ["127.0.0.1:4711"]) == replace(plan, gateways=(replace(plan.gateways[0], grpc_port=4711),))
