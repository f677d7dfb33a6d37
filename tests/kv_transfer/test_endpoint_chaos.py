"""Many handoffs under random faults: each ends once, and no block is written that a worker has taken back."""

import asyncio
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.handoff import Limits
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.plan import Span

from .conformance_kinds import LARGE_LAYOUT
from .fake_workers import FakeCluster, FakeWorker, eventually, running
from .fakes import LAYOUT, WAIT_S

LIMITS = Limits(lease_s=0.5, park_s=0.5, announce_s=0.5, commit_s=0.5, verify_s=0.3, stop_s=0.1)
FREE = 0xEE  # what a block holds that nobody may write
NUM_REQUESTS = 24


class Rooms:
    """A target's blocks: bound when asked, taken back on release, and marked when nobody may write them."""

    def __init__(self, worker: FakeWorker, rng: random.Random) -> None:
        self.worker = worker
        self.rng = rng
        self.free = set(range(worker.cache.num_blocks))
        self.held: dict[tuple[str, int], list[int]] = {}
        self.adopted: dict[tuple[str, int], list[int]] = {}
        self.wanted: dict[tuple[str, int], int] = {}
        worker.cache.pool[:] = FREE

    def bind(self, request_id: str, epoch: int) -> None:
        asyncio.get_running_loop().call_later(self.rng.random() * 0.02, self._bind, (request_id, epoch))

    def _bind(self, key: tuple[str, int]) -> None:
        num_blocks = self.wanted[key]
        if len(self.free) < num_blocks:
            self.worker.endpoint.cancel(*key, "no room")
            return
        blocks = self.rng.sample(sorted(self.free), num_blocks)
        if self.worker.endpoint.bound(*key, blocks, 0):
            self.free -= set(blocks)
            self.held[key] = blocks

    def release(self, request_id: str, epoch: int) -> None:
        self.take_back(self.held.pop((request_id, epoch), []))

    def take_back(self, blocks: list[int]) -> None:
        self.worker.cache.pool[blocks] = FREE
        self.free |= set(blocks)

    def check(self) -> None:
        assert (self.worker.cache.pool[sorted(self.free)] == FREE).all(), "a block was written after it was taken back"


class Chaos:
    """One run: requests with random shapes, computed in random pieces, between random workers, with random mishaps."""

    limits = LIMITS
    layout = LAYOUT
    most_blocks = 5  # of a request
    block_s = 0.01  # that a block takes to be computed, at most
    cancelled = 0.1  # share of all attempts

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = FakeCluster(network=MemoryNetwork(timeout_s=0.1), limits=self.limits)
        self.sources = [self._add(f"p{i}") for i in range(2)]
        self.targets = [self._add(f"d{i}") for i in range(2)]
        self.rooms = {worker.address.worker_id: Rooms(worker, self.rng) for worker in self.targets}
        for worker in self.targets:
            worker.engine.on_bind = self.rooms[worker.address.worker_id].bind
            worker.engine.on_release = self.rooms[worker.address.worker_id].release

    def _add(self, worker_id: str) -> FakeWorker:
        return self.cluster.add(worker_id, window=3)

    async def run(self) -> None:
        async with running(self.cluster):
            mishaps = asyncio.create_task(self._mishaps())
            async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as requests:
                for index in range(NUM_REQUESTS):
                    requests.create_task(self._request(f"r{index}"))
            mishaps.cancel()
            self.cluster.network.release()
            await eventually(lambda: not any(w.endpoint.stats().num_outgoing for w in self.sources))
            await eventually(lambda: not any(w.endpoint.stats().num_incoming for w in self.targets))
            self._sweep()
        assert not any(rooms.held for rooms in self.rooms.values())
        for rooms in self.rooms.values():
            rooms.check()

    async def _mishaps(self) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 0.02)
            self._sweep()
            self._mishap()

    def _mishap(self) -> None:
        if self.rng.random() < 0.1 and self.cluster.channels:
            self.rng.choice(self.cluster.channels)[0].cut()
        elif self.rng.random() < 0.5:
            self.cluster.network.release()
        else:
            self.cluster.network.inject(self.rng.choice(list(Fault)), after=self.rng.randrange(3))

    def _sweep(self) -> None:
        """Take what was adopted, as engines do."""
        for worker in self.targets:
            rooms = self.rooms[worker.address.worker_id]
            for name, request_id, epoch, *_ in worker.engine.events:
                key = (str(request_id), int(str(epoch)))
                if name == "adopt" and key in rooms.held:
                    rooms.adopted[key] = rooms.held.pop(key)

    async def _request(self, request_id: str) -> None:
        await asyncio.sleep(self.rng.random() * 0.3)
        source, num_blocks = self.rng.choice(self.sources), self.rng.randint(1, self.most_blocks)
        here = self.rng.sample(range(source.cache.num_blocks), num_blocks)
        epoch, target = 1, self.rng.choice(self.targets)
        order = self._reserve(source, target, request_id, epoch, num_blocks)
        source.endpoint.begin_source(request_id, epoch, num_blocks * self.layout.block_tokens, here, target.address)
        computing = asyncio.create_task(self._compute(source, request_id, num_blocks))
        while not await self._ends(source, target, request_id, epoch):
            order.cancel()
            target.endpoint.cancel(request_id, epoch, "the gateway names another target")
            epoch, target = epoch + 1, self.rng.choice(self.targets)
            if not source.endpoint.retarget(request_id, epoch, target.address):
                break
            order = self._reserve(source, target, request_id, epoch, num_blocks)
        order.cancel()
        await source.engine.until("release_source", request_id)
        await computing
        rooms = self.rooms[target.address.worker_id]
        if ("adopt", request_id, epoch, 42) in target.engine.events:
            self._sweep()
            blocks = rooms.adopted.pop((request_id, epoch))
            assert np.array_equal(target.cache.pool[blocks], source.cache.pool[here])
            rooms.take_back(blocks)
        assert sum(event[0] == "release_source" for event in source.engine.events if event[1] == request_id) == 1

    def _reserve(
        self, source: FakeWorker, target: FakeWorker, request_id: str, epoch: int, num_blocks: int
    ) -> asyncio.TimerHandle:
        self.rooms[target.address.worker_id].wanted[request_id, epoch] = num_blocks
        reserve = partial(
            target.endpoint.reserve, request_id, epoch, num_blocks * self.layout.block_tokens, source.address
        )
        return asyncio.get_running_loop().call_later(self.rng.random() * 0.02, reserve)

    async def _compute(self, source: FakeWorker, request_id: str, num_blocks: int) -> None:
        for block in range(num_blocks):
            await asyncio.sleep(self.rng.random() * self.block_s)
            source.endpoint.group_ready(request_id, 1, Span(0, 2, block, block + 1))
            source.endpoint.group_ready(request_id, 1, Span(2, 3, block, block + 1))
        source.endpoint.computed(request_id, 1, 42, asyncio.get_running_loop().time())

    async def _ends(self, source: FakeWorker, target: FakeWorker, request_id: str, epoch: int) -> bool:
        """Wait for an end of this epoch; True if the request is over with it."""
        cancels = self.rng.random() < self.cancelled
        if cancels:
            await asyncio.sleep(self.rng.random() * 0.05)
            source.endpoint.cancel(request_id, epoch, "chaos")
            target.endpoint.cancel(request_id, epoch, "chaos")
            return True
        waits = [
            asyncio.create_task(source.engine.until("parked", request_id, epoch)),
            asyncio.create_task(source.engine.until("failed", request_id, epoch, FailureKind.CORRUPTED)),
            asyncio.create_task(source.engine.until("release_source", request_id, epoch)),
        ]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return waits[0] not in done


class GlooChaos(Chaos):
    """Over real sockets, between blocks that are long enough to need no staging; links are closed under way."""

    limits = Limits(lease_s=1.0, park_s=1.0, announce_s=1.0, commit_s=1.0, verify_s=0.5, stop_s=0.05)
    layout = replace(LARGE_LAYOUT, head_dim=128)  # 1.5 MiB a block
    most_blocks = 10
    block_s = 0.0  # so that much is on the wire when something happens
    cancelled = 0.3

    def _add(self, worker_id: str) -> FakeWorker:
        make = partial(GlooLinks, host="127.0.0.1", open_timeout_s=2.0, chunk_timeout_s=0.5)
        return self.cluster.add(worker_id, window=3, layout=self.layout, make_links=make, shared=True)

    def _mishap(self) -> None:
        if self.rng.random() < 0.02 and self.cluster.channels:
            self.rng.choice(self.cluster.channels)[0].cut()
        if self.rng.random() < 0.6:
            endpoint = self.rng.choice(self.sources + 3 * self.targets).endpoint
            links = [*endpoint._sources.links.values(), *endpoint._targets.links.values()]
            if links:
                self.rng.choice(links).close("a mishap")


@pytest.mark.parametrize("seed", range(4))
def test_every_handoff_ends_and_no_block_is_written_after_it_was_taken_back(seed: int) -> None:
    async def run() -> None:
        await Chaos(seed).run()

    asyncio.run(run())


def play(seed: int) -> None:
    async def run() -> None:
        await GlooChaos(seed).run()

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_it_is_so_where_bytes_move_between_sockets_and_blocks(seed: int) -> None:
    play(seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 40))
def test_it_is_so_for_long_where_bytes_move_between_sockets_and_blocks(seed: int) -> None:
    play(seed)
