"""Workers without an engine: an endpoint, a KV cache, and an EngineSide that notes what it is asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import ParamSpec

from twinpool.core.messages import FailureKind, WorkerAddress
from twinpool.kv_transfer.channel import ChannelClosed, MemoryChannel, PeerChannel, memory_channels
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_policy import CodecPolicy
from twinpool.kv_transfer.endpoint import TransferEndpoint
from twinpool.kv_transfer.handoff import Limits, Seal
from twinpool.kv_transfer.link import Links
from twinpool.kv_transfer.links import LinkKinds
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import MemoryNetwork
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

from .fakes import LAYOUT, WAIT_S, NumpyCache

Event = tuple[object, ...]


class NotingEngine:
    """EngineSide that only notes, beside calling ``on_bind`` and ``on_release`` (of a target)."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.arrived: dict[tuple[str, int], tuple[CodecName, int]] = {}  # with what codec, and as how many bytes
        self._news = asyncio.Event()
        self.on_bind: Callable[[str, int], None] = lambda *_: None
        self.on_release: Callable[[str, int], None] = lambda *_: None

    def bind_blocks(self, request_id: str, epoch: int) -> None:
        self._note("bind", request_id, epoch)
        self.on_bind(request_id, epoch)

    def adopt(self, request_id: str, epoch: int, seal: Seal, codec: CodecName) -> None:
        self.arrived[request_id, epoch] = (codec, seal.kv_bytes)
        self._note("adopt", request_id, epoch, seal.first_token)

    def release_target(self, request_id: str, epoch: int) -> None:
        self._note("release_target", request_id, epoch)
        self.on_release(request_id, epoch)

    def granted(self, request_id: str, epoch: int) -> None:
        self._note("granted", request_id, epoch)

    def parked(self, request_id: str, epoch: int, reason: str) -> None:
        self._note("parked", request_id, epoch, reason)

    def release_source(self, request_id: str, epoch: int) -> None:
        self._note("release_source", request_id, epoch)

    def failed(self, request_id: str, epoch: int, kind: FailureKind, reason: str) -> None:
        self._note("failed", request_id, epoch, kind, reason)

    def _note(self, *event: object) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, *event: object) -> Event:
        """Wait for an event that begins like this one."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for noted in self.events:
                    if noted[: len(event)] == event:
                        return noted
                self._news.clear()
                await self._news.wait()

    def names(self) -> list[object]:
        return [event[0] for event in self.events]


class Tap:
    """A channel whose outgoing messages can be looked at, and held back."""

    def __init__(self, inner: MemoryChannel, sent: list[pb.PeerMessage]) -> None:
        self.inner = inner
        self._sent = sent

    def send(self, message: pb.PeerMessage) -> None:
        self._sent.append(message)
        self.inner.send(message)

    async def receive(self) -> pb.PeerMessage:
        return await self.inner.receive()

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class FakeWorker:
    address: WorkerAddress
    cache: NumpyCache
    engine: NotingEngine
    endpoint: TransferEndpoint


@dataclass
class FakeCluster:
    """Workers in one process, by id, and what they said to each other."""

    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(timeout_s=0.2))
    limits: Limits = field(default_factory=Limits)
    heartbeat_s: float = 0.05
    workers: dict[str, FakeWorker] = field(default_factory=dict)
    channels: list[tuple[MemoryChannel, MemoryChannel]] = field(default_factory=list)
    said: list[pb.PeerMessage] = field(default_factory=list)  # by those who called
    _serving: set["asyncio.Task[None]"] = field(default_factory=set)

    def add(
        self,
        worker_id: str,
        *,
        layout: KVLayout = LAYOUT,
        make_links: Callable[[NumpyCache], Links | LinkKinds] | None = None,
        dial: Callable[[WorkerAddress], Awaitable[PeerChannel]] | None = None,
        window: int = 4,
        codec: str | CodecPolicy = "raw",
        shared: bool = False,
        max_open_links: int = 64,
    ) -> FakeWorker:
        cache = NumpyCache(seed=len(self.workers), layout=layout, shared=shared)
        engine = NotingEngine()
        address = WorkerAddress(worker_id, "1", f"{worker_id}:1")
        links = make_links(cache) if make_links else MemoryLinks(self.network, cache, why="a test")
        endpoint = TransferEndpoint(
            address,
            cache,
            engine,
            links=links,
            codec=codec,
            dial=dial or self.dial,
            limits=self.limits,
            window=window,
            heartbeat_s=self.heartbeat_s,
            max_open_links=max_open_links,
        )
        worker = self.workers[worker_id] = FakeWorker(address, cache, engine, endpoint)
        return worker

    async def dial(self, address: WorkerAddress) -> PeerChannel:
        worker = self.workers.get(address.worker_id)
        if worker is None:
            raise ChannelClosed("nobody answers")
        ours, theirs = memory_channels()
        self.channels.append((ours, theirs))
        task = asyncio.create_task(worker.endpoint.serve(theirs))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return Tap(ours, self.said)

    def said_kinds(self) -> list[str]:
        return [str(message.WhichOneof("kind")) for message in self.said]

    async def close(self) -> None:
        for worker in self.workers.values():
            await worker.endpoint.close()
        await asyncio.gather(*self._serving)


@asynccontextmanager
async def running(cluster: FakeCluster) -> AsyncIterator[FakeCluster]:
    """Close every worker at the end, and see that no task outlives them."""
    try:
        yield cluster
    finally:
        await cluster.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def eventually(holds: Callable[[], object]) -> None:
    """Wait for something that nobody reports."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@dataclass
class Handoff:
    """One request between two workers, told to their endpoints step by step."""

    source: FakeWorker
    target: FakeWorker
    request_id: str = "r"
    epoch: int = 1
    num_tokens: int = 22  # six blocks, the last of them partial
    here: tuple[int, ...] = (9, 3, 4, 0, 7, 30)
    there: tuple[int, ...] = (1, 2, 5, 8, 20, 11)
    skip_blocks: int = 0
    allows_loss: bool = True

    def reserve(self) -> None:
        engine, endpoint = self.target.engine, self.target.endpoint
        answer = engine.on_bind

        def on_bind(request_id: str, epoch: int) -> None:
            if (request_id, epoch) == (self.request_id, self.epoch):
                loop = asyncio.get_running_loop()
                loop.call_soon(endpoint.bound, request_id, epoch, self.there, self.skip_blocks)
            else:
                answer(request_id, epoch)

        engine.on_bind = on_bind
        endpoint.reserve(
            self.request_id, self.epoch, self.num_tokens, self.source.address, allows_loss=self.allows_loss
        )

    def begin(self) -> None:
        self.source.endpoint.begin_source(
            self.request_id,
            self.epoch,
            self.num_tokens,
            self.here,
            self.target.address,
            allows_loss=self.allows_loss,
        )

    def compute(self, first_block: int, end_block: int, *, epoch: int | None = None) -> None:
        """Report a chunk: its blocks, layers 0 and 1 first, layer 2 behind."""
        for first_layer, end_layer in ((0, 2), (2, 3)):
            span = Span(first_layer, end_layer, first_block, end_block)
            self.source.endpoint.group_ready(self.request_id, epoch or self.epoch, span)

    def finish(self, *, epoch: int | None = None) -> None:
        self.source.endpoint.computed(self.request_id, epoch or self.epoch, 42, asyncio.get_running_loop().time())

    def run(self) -> None:
        """All of it, at once."""
        self.reserve()
        self.begin()
        self.compute(0, 2)
        self.compute(2, 6)
        self.finish()

    async def until_over(self) -> None:
        await self.target.engine.until("adopt", self.request_id, self.epoch, 42)
        await self.source.engine.until("release_source", self.request_id, self.epoch)
        assert self.has_arrived

    @property
    def has_arrived(self) -> bool:
        first = self.skip_blocks
        ours = self.source.cache.pool[list(self.here[first:])]
        theirs = self.target.cache.pool[list(self.there[first:])]
        return bool((ours == theirs).all())

    def to(self, target: FakeWorker, epoch: int) -> "Handoff":
        """The same request, for another target."""
        return replace(self, target=target, epoch=epoch)


QUICK = Limits(lease_s=0.3, park_s=0.3, announce_s=0.3, commit_s=0.3, verify_s=0.3, stop_s=0.2)
APART = Limits(joined_bytes=0)  # groups that wait go one by one

P = ParamSpec("P")


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own, for ``WAIT_S`` at most."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(WAIT_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run
