"""Pairs over real gRPC, between endpoints in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.endpoint import TransferEndpoint
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.pairing import SECRET_HEADER, grpc_dial
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.protos.twinpool.v1 import worker_pb2_grpc

from .fake_workers import FakeCluster, FakeWorker, Handoff, eventually
from .fakes import WAIT_S


@dataclass
class Service(worker_pb2_grpc.WorkerServiceServicer):
    endpoint: TransferEndpoint
    secrets: list[str] = field(default_factory=list)

    async def Pair(self, requests: AsyncIterator[pb.PeerMessage], context: Any) -> AsyncIterator[pb.PeerMessage]:  # noqa: N802
        self.secrets.append(dict(context.invocation_metadata())[SECRET_HEADER])
        if self.secrets[-1] != "the secret":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a member")
        async for message in self.endpoint.serve_pair(requests, context):
            yield message


@dataclass
class Listening:
    source: FakeWorker
    target: FakeWorker
    server: grpc.aio.Server
    service: Service
    cluster: FakeCluster


@asynccontextmanager
async def two_workers(secret: str = "the secret") -> AsyncIterator[Listening]:
    cluster = FakeCluster(network=MemoryNetwork())
    source, target = cluster.add("p", dial=grpc_dial(secret)), cluster.add("d")
    server, service = grpc.aio.server(), Service(target.endpoint)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    target.address = replace(target.address, address=f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    try:
        async with asyncio.timeout(WAIT_S):
            yield Listening(source, target, server, service, cluster)
    finally:
        await server.stop(0)
        await cluster.close()


def test_a_handoff_over_grpc_presents_the_secret() -> None:
    async def run() -> None:
        async with two_workers() as workers:
            handoff = Handoff(workers.source, workers.target)
            handoff.run()
            await handoff.until_over()
            assert workers.service.secrets == ["the secret"]

    asyncio.run(run())


def test_without_the_secret_there_is_no_pair() -> None:
    async def run() -> None:
        async with two_workers("a guess") as workers:
            Handoff(workers.source, workers.target).run()
            assert "not a member" in str((await workers.source.engine.until("parked"))[3])

    asyncio.run(run())


def test_a_target_that_nobody_serves_is_lost_at_once() -> None:
    async def run() -> None:
        async with two_workers() as workers:
            await workers.server.stop(0)
            Handoff(workers.source, workers.target).run()
            assert "UNAVAILABLE" in str((await workers.source.engine.until("parked"))[3])

    asyncio.run(run())


def test_the_end_of_a_target_is_noticed_at_once() -> None:
    async def run() -> None:
        async with two_workers() as workers:
            workers.cluster.network.inject(Fault.DELAY)
            Handoff(workers.source, workers.target).run()
            await workers.source.engine.until("granted")
            await workers.server.stop(0)
            await workers.source.engine.until("parked", "r", 1)
            await workers.target.engine.until("failed", "r", 1, FailureKind.PEER_LOST)
            await workers.target.engine.until("release_target", "r", 1)

    asyncio.run(run())


def test_the_end_of_a_source_is_noticed_at_once() -> None:
    async def run() -> None:
        async with two_workers() as workers:
            workers.cluster.network.inject(Fault.DELAY)
            Handoff(workers.source, workers.target).run()
            await workers.source.engine.until("granted")
            await workers.source.endpoint.close()
            await workers.target.engine.until("failed", "r", 1)
            await workers.target.engine.until("release_target", "r", 1)
            await eventually(lambda: not workers.target.endpoint.stats().links)

    asyncio.run(run())
