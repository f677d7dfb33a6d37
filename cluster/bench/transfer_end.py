"""One case's end of all handoffs in a worker process of `twinpool bench transfer`: an endpoint, and who waits for it.

Stands where a worker's engine stands: binds blocks at once, and notes when a request is adopted or released. Computes
nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc

from twinpool.cluster.bench.transfer_case import Case
from twinpool.cluster.bench.transfer_links import HOST, Times, make_links
from twinpool.cluster.bench.transfer_prefill import Prefill, start_thread
from twinpool.cluster.grpc_options import worker_server_options
from twinpool.core.errors import Internal
from twinpool.core.messages import FailureKind, WorkerAddress
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.endpoint import TransferEndpoint
from twinpool.kv_transfer.handoff import Seal
from twinpool.kv_transfer.links import LinkKinds
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.shm import host_identity
from twinpool.model.kv_layout import KVCache
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.protos.twinpool.v1 import worker_pb2_grpc

EPOCH = 1
FIRST_TOKEN = 1
Adopted = tuple[float, Seal]  # when, by time.monotonic


class CaseEnd(worker_pb2_grpc.WorkerServiceServicer):
    """Made, used and closed on the event loop. An EngineSide, and the server of its own endpoint."""

    def __init__(self, role: str, case: Case, cache: KVCache, block_ids: Sequence[int]) -> None:
        self._cache = cache
        self._block_ids = block_ids
        self._links = make_links(case, cache)
        self._server = grpc.aio.server(options=worker_server_options())
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port(f"{HOST}:0")
        self.address = WorkerAddress(role, "1", f"{HOST}:{port}")
        kinds = LinkKinds({case.link: lambda: self._links}, named_by="bench", description="", host=host_identity())
        self._endpoint = TransferEndpoint(self.address, cache, self, codec=case.codec, links=kinds)
        self._num_tokens: dict[str, int] = {}
        self._adopted: dict[str, asyncio.Future[Adopted]] = {}
        self._released: dict[str, asyncio.Future[float]] = {}

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()

    async def close(self) -> None:
        """Leave nothing behind."""
        await self._endpoint.close()
        await self._server.stop(0)

    async def Pair(  # noqa: N802 - named by the protocol
        self, requests: AsyncIterator[pb.PeerMessage], context: Any
    ) -> AsyncIterator[pb.PeerMessage]:
        async for message in self._endpoint.serve_pair(requests, context):
            yield message

    # --- As the target ----------------------------------------------------------------------------------------------

    def expect(self, request_id: str, num_tokens: int, source: WorkerAddress) -> None:
        """Reserve for a request that the source will announce."""
        self._num_tokens[request_id] = num_tokens
        self._adopted[request_id] = asyncio.get_running_loop().create_future()
        self._endpoint.reserve(request_id, EPOCH, num_tokens, source)

    async def adopted(self, request_id: str) -> Adopted:
        """When its KV was whole here, and what the source said of it."""
        try:
            return await self._adopted[request_id]
        finally:
            del self._adopted[request_id]

    # --- As the source ----------------------------------------------------------------------------------------------

    async def hand_over(
        self, request_id: str, num_tokens: int, target: WorkerAddress, spans: Sequence[Span], prefill: Prefill | None
    ) -> dict[str, Any]:
        """Be the source of a request, to its end; without a prefill all its KV is there when it begins.

        A prefill that makes more groups than there are ``spans`` has its KV sent when it is over.
        """
        released = self._released[request_id] = asyncio.get_running_loop().create_future()
        blocks = self._block_ids[: self._cache.layout.num_blocks(num_tokens)]
        self._links.times.clear()
        begun_s = time.monotonic()
        self._endpoint.begin_source(request_id, EPOCH, num_tokens, blocks, target)
        if prefill is None:
            self._report(request_id, spans)
            computed_s = self._computed(request_id)
        else:
            computed_s = await self._produce(request_id, spans, prefill)
        released_s = await released
        return {
            "begun_s": begun_s,
            "computed_s": computed_s,
            "released_s": released_s,
            "times": sorted(self._links.times),
        }

    async def _produce(self, request_id: str, spans: Sequence[Span], prefill: Prefill) -> float:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        streams = len(spans) == len(prefill.seconds)

        def on_group(number: int) -> None:
            if streams:
                loop.call_soon_threadsafe(self._report, request_id, spans[number : number + 1])

        def end() -> None:
            if not streams:
                self._report(request_id, spans)
            over.set_result(self._computed(request_id))

        def work() -> None:
            prefill.run(on_group)
            loop.call_soon_threadsafe(end)

        start_thread(work)
        return await over  # type: ignore[no-any-return]

    def _report(self, request_id: str, spans: Sequence[Span]) -> None:
        for span in spans:
            self._endpoint.group_ready(request_id, EPOCH, span)

    def _computed(self, request_id: str) -> float:
        at_s = time.monotonic()
        self._endpoint.computed(request_id, EPOCH, FIRST_TOKEN, at_s)
        return at_s

    @property
    def times(self) -> list[Times]:
        return self._links.times

    # --- EngineSide -------------------------------------------------------------------------------------------------

    def bind_blocks(self, request_id: str, epoch: int) -> None:
        """See EngineSide. An idle target has room at once."""
        blocks = self._block_ids[: self._cache.layout.num_blocks(self._num_tokens.pop(request_id))]
        asyncio.get_running_loop().call_soon(partial(self._endpoint.bound, request_id, epoch, blocks, 0))

    def adopt(self, request_id: str, epoch: int, seal: Seal, codec: CodecName) -> None:  # noqa: ARG002
        """See EngineSide."""
        self._adopted[request_id].set_result((time.monotonic(), seal))

    def release_target(self, request_id: str, epoch: int) -> None:
        """See EngineSide. ``failed`` has told who waits."""

    def granted(self, request_id: str, epoch: int) -> None:
        """See EngineSide."""

    def parked(self, request_id: str, epoch: int, reason: str) -> None:
        """See EngineSide. Nobody names another target."""
        self.failed(request_id, epoch, FailureKind.TRANSFER_FAILED, reason)

    def release_source(self, request_id: str, epoch: int) -> None:  # noqa: ARG002
        """See EngineSide."""
        released = self._released.pop(request_id, None)
        if released is not None and not released.done():
            released.set_result(time.monotonic())

    def failed(self, request_id: str, epoch: int, kind: FailureKind, reason: str) -> None:  # noqa: ARG002
        """See EngineSide."""
        for waiting in (self._adopted.get(request_id), self._released.get(request_id)):
            if waiting is not None and not waiting.done():
                waiting.set_exception(Internal(f"a handoff failed ({kind}): {reason}"))
