"""Which link each pair of workers gets, what happens when it cannot be opened, and how many stay open."""

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.endpoint import LinkStats
from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.link import LinkError, LinkEvents, Links, ReceiveLink, SendLink, Ticket
from twinpool.kv_transfer.links import LinkKinds
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.shm import ShmLinks

from .fake_workers import FakeCluster, FakeWorker, Handoff, eventually, in_loop, running
from .fakes import LAYOUT, WAIT_S, NumpyCache, wait_until

pytestmark = pytest.mark.slow  # real sockets and real waits


def auto(cache: NumpyCache, host: str = "here", shm: Callable[[NumpyCache], Links] = ShmLinks) -> LinkKinds:
    makers: dict[str, Callable[[], Links]] = {
        "shm": lambda: shm(cache),
        "gloo": lambda: GlooLinks(cache, "127.0.0.1", open_timeout_s=WAIT_S),
    }
    return LinkKinds(makers, named_by="auto", description="auto", host=host)


def shm_only(cache: NumpyCache, host: str = "here") -> LinkKinds:
    makers: dict[str, Callable[[], Links]] = {"shm": lambda: ShmLinks(cache)}
    return LinkKinds(makers, named_by="transfer.link: shm", description="shm", host=host)


def gloo_only(cache: NumpyCache) -> Links:
    return GlooLinks(cache, "127.0.0.1", open_timeout_s=WAIT_S)


def link_of(worker: FakeWorker) -> LinkStats:
    (link,) = worker.endpoint.stats().links
    return link


def open_links(worker: FakeWorker) -> list[str]:
    return [link.peer for link in worker.endpoint.stats().links if link.is_open]


# --- The choice -----------------------------------------------------------------------------------------------------


@in_loop
async def test_workers_on_one_host_share_memory() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(
            cluster.add("p", make_links=auto, shared=True), cluster.add("d", make_links=auto, shared=True)
        )
        handoff.run()
        await handoff.until_over()
        link = link_of(handoff.source)
        assert (link.kind, link.why, link.link_epoch) == ("shm", "auto: both workers are on one host", 1)
        assert link_of(handoff.target).kind == "shm"
        assert link.num_bytes == 6 * LAYOUT.block_bytes


@in_loop
async def test_workers_that_are_apart_use_the_network() -> None:
    async with running(FakeCluster()) as cluster:
        source = cluster.add("p", make_links=auto, shared=True)
        handoff = Handoff(source, cluster.add("d", make_links=lambda cache: auto(cache, "there"), shared=True))
        handoff.run()
        await handoff.until_over()
        link = link_of(source)
        assert (link.kind, link.link_epoch) == ("gloo", 1)
        assert "shm needs both workers on one host" in link.why


@in_loop
async def test_each_pair_has_a_choice_of_its_own() -> None:
    async with running(FakeCluster()) as cluster:
        source = cluster.add("p", make_links=auto, shared=True)
        near = cluster.add("near", make_links=auto, shared=True)
        far = cluster.add("far", make_links=gloo_only)
        handoffs = [Handoff(source, near), Handoff(source, far, "s")]
        for handoff in handoffs:
            handoff.run()
        for handoff in handoffs:
            await handoff.until_over()
        assert {link.peer: link.kind for link in source.endpoint.stats().links} == {"near": "shm", "far": "gloo"}


@in_loop
async def test_a_link_that_was_named_is_used_or_refused_with_the_reason() -> None:
    async with running(FakeCluster()) as cluster:
        source = cluster.add("p", make_links=shm_only, shared=True)
        near = cluster.add("near", make_links=auto, shared=True)
        far = cluster.add("far", make_links=lambda cache: shm_only(cache, "there"), shared=True)
        handoff = Handoff(source, near)
        handoff.run()
        await handoff.until_over()
        Handoff(source, far, "s").run()
        parked = await source.engine.until("parked", "s", 1)
        assert "transfer.link: shm: shm needs both workers on one host" in str(parked[3])
        await far.engine.until("release_target", "s", 1)


# --- A kind that cannot be opened -----------------------------------------------------------------------------------


class Unable:
    """Links that promise shared memory and fail at one of three places."""

    kind = "shm"
    why = ""

    def __init__(self, cache: NumpyCache, where: str) -> None:
        self._inner = ShmLinks(cache, open_timeout_s=0.2)
        self._where = where

    def listen(self, events: LinkEvents) -> tuple[ReceiveLink, Ticket]:
        if self._where == "listen":
            raise LinkError("a test lets nobody listen")
        return self._inner.listen(events)

    def dial(self, ticket: Ticket, events: LinkEvents) -> SendLink:
        secret = b"\0" * 16 if self._where == "dial" else ticket.secret
        return self._inner.dial(Ticket(ticket.host, 0, secret), events)


@pytest.mark.parametrize(
    ("source_fails", "target_fails"), [("", "listen"), ("dial", ""), ("make", ""), ("", "make"), ("", "map")]
)
@in_loop
async def test_auto_goes_on_with_the_next_kind_and_no_handoff_notices(source_fails: str, target_fails: str) -> None:
    def able(where: str) -> Callable[[NumpyCache], LinkKinds]:
        def make(cache: NumpyCache) -> Links:
            if where == "make":
                raise ValueError("a test lets nobody make it")
            if where == "map":  # a source of another layout would be refused before; this is the same to the link
                cache = NumpyCache(layout=BIG, shared=True)
            return Unable(cache, where)

        return lambda cache: auto(cache, shm=make)

    async with running(FakeCluster()) as cluster:
        source = cluster.add("p", make_links=able(source_fails), shared=True)
        handoff = Handoff(source, cluster.add("d", make_links=able(target_fails), shared=True))
        handoff.run()
        await handoff.until_over()
        assert source.engine.names() == ["granted", "release_source"]
        assert handoff.target.engine.names() == ["bind", "adopt"]
        link = link_of(source)
        assert link.kind == "gloo"
        assert link.why.startswith("auto: shm could not be opened: ")
        again = Handoff(source, handoff.target, "s")
        again.run()
        await again.until_over()
        assert link_of(source).link_epoch == link.link_epoch


BIG = type(LAYOUT)(num_layers=3, num_kv_heads=2, block_tokens=4, head_dim=72, dtype="float32", model="test")


@in_loop
async def test_when_no_kind_opens_the_handoff_is_parked_and_a_later_one_tries_all_again() -> None:
    def able(cache: NumpyCache) -> LinkKinds:
        return LinkKinds({"shm": lambda: unable}, named_by="auto", description="auto", host="here")

    async with running(FakeCluster()) as cluster:
        unable: Links = Unable(NumpyCache(shared=True), "listen")
        source = cluster.add("p", make_links=auto, shared=True)
        target = cluster.add("d", make_links=able, shared=True)
        Handoff(source, target).run()
        assert "a test lets nobody listen" in str((await source.engine.until("parked", "r", 1))[3])
        unable = ShmLinks(target.cache)
        target.endpoint._kinds._made.clear()
        again = Handoff(source, target, "s")
        again.run()
        await again.until_over()


# --- How many stay open ---------------------------------------------------------------------------------------------


@in_loop
async def test_a_source_closes_the_link_that_was_unused_for_longest() -> None:
    async with running(FakeCluster()) as cluster:
        source = cluster.add("p", make_links=auto, shared=True, max_open_links=2)
        targets = [cluster.add(f"d{i}", make_links=auto, shared=True) for i in range(4)]
        for number, index in enumerate((0, 1, 0, 2, 3, 0)):
            handoff = Handoff(source, targets[index], f"r{number}")
            handoff.run()
            await handoff.until_over()
            await eventually(lambda: len(open_links(source)) <= 2)
        assert sorted(open_links(source)) == ["d0", "d3"]
        epochs = {link.peer: link.link_epoch for link in source.endpoint.stats().links}
        assert epochs == {"d0": 2, "d1": 1, "d2": 1, "d3": 1}
        assert all(not isinstance(event[0], FailureKind) for event in source.engine.events)
        assert set(source.engine.names()) == {"granted", "release_source"}


@in_loop
async def test_a_target_has_sources_close_the_links_that_they_do_not_use() -> None:
    async with running(FakeCluster()) as cluster:
        target = cluster.add("d", make_links=auto, shared=True, max_open_links=2)
        sources = [cluster.add(f"p{i}", make_links=auto, shared=True) for i in range(5)]
        for number, source in enumerate((*sources, sources[0])):
            handoff = Handoff(source, target, f"r{number}")
            handoff.run()
            await handoff.until_over()
            await eventually(lambda: len(open_links(target)) <= 2)
        assert sorted(open_links(target)) == ["p0", "p4"]
        assert all(set(source.engine.names()) == {"granted", "release_source"} for source in sources)


@in_loop
async def test_links_in_use_stay_open_however_many_they_are() -> None:
    def memory(cache: NumpyCache) -> Links:
        return MemoryLinks(cluster.network, cache)

    async with running(FakeCluster(network=MemoryNetwork())) as cluster:
        source = cluster.add("p", make_links=memory, max_open_links=1)
        handoffs = [Handoff(source, cluster.add(f"d{i}", make_links=memory), f"r{i}") for i in range(3)]
        for handoff in handoffs:
            cluster.network.inject(Fault.DELAY)
            handoff.run()
            await eventually(lambda: len(open_links(source)) == 1 + handoffs.index(handoff))  # noqa: B023
            await source.engine.until("granted", handoff.request_id)
            await asyncio.sleep(0.05)  # its first group is on the link by then
        cluster.network.release()
        for handoff in handoffs:
            await handoff.until_over()
        await eventually(lambda: len(open_links(source)) == 1)


def num_open_files() -> int:
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))


@pytest.mark.parametrize("kind", [shm_only, gloo_only])
@in_loop
async def test_descriptors_and_threads_grow_with_the_links_that_may_be_open_and_not_with_the_pairs(
    kind: Callable[[NumpyCache], Links],
) -> None:
    async with running(FakeCluster()) as cluster:
        source = cluster.add("p", make_links=kind, shared=True, max_open_links=2)
        targets = [cluster.add(f"d{i}", make_links=kind, shared=True) for i in range(8)]
        files = threads = 0
        for number, target in enumerate(targets):
            handoff = Handoff(source, target, f"r{number}")
            handoff.run()
            await handoff.until_over()
            if number < 2:
                files, threads = num_open_files(), threading.active_count()
        await eventually(lambda: num_open_files() <= files)
        await eventually(lambda: threading.active_count() <= threads)


def test_closing_in_mid_stream_leaves_no_thread_no_descriptor_and_no_mapping() -> None:
    async def disturb() -> None:
        async with running(FakeCluster()) as cluster:
            handoff = Handoff(
                cluster.add("p", make_links=auto, shared=True), cluster.add("d", make_links=auto, shared=True)
            )
            handoff.reserve()
            handoff.begin()
            handoff.compute(0, 3)
            await eventually(lambda: any(link.num_bytes for link in handoff.target.endpoint.stats().links))
            handoff.compute(3, 6)

    def num_mappings() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("memfd:twinpool-kv")

    asyncio.run(disturb())
    before = (num_mappings(), num_open_files(), threading.active_count())
    for _ in range(5):
        asyncio.run(disturb())
    wait_until(
        lambda: (
            (num_mappings(), num_open_files(), threading.active_count()) <= before
            and num_open_files() <= before[1]
            and threading.active_count() <= before[2]
        )
    )
