"""Handoffs between workers with GPUs, over stand-ins, and between workers that cut chunks at different sizes."""

from collections.abc import Callable
from functools import partial

import pytest

from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.link import Links
from twinpool.kv_transfer.links import LinkKinds
from twinpool.kv_transfer.nccl import NcclLinks
from twinpool.kv_transfer.shm import ShmLinks

from .fake_workers import FakeCluster, FakeWorker, Handoff, in_loop, running
from .fakes import LAYOUT, WAIT_S, NumpyCache
from .strict_group import StrictAccelerator

pytestmark = pytest.mark.slow  # real sockets and real waits

WIDE = type(LAYOUT)(num_layers=3, num_kv_heads=2, block_tokens=4, head_dim=72, dtype="float32", model="test")


def gpu_worker(cache: NumpyCache, device: str, kinds: tuple[str, ...] = ("nccl", "gloo")) -> LinkKinds:
    makers: dict[str, Callable[[], Links]] = {
        "nccl": lambda: NcclLinks(cache, "127.0.0.1", StrictAccelerator(device), open_timeout_s=WAIT_S),
        "gloo": lambda: GlooLinks(cache, "127.0.0.1", open_timeout_s=WAIT_S),
    }
    chosen = {kind: makers[kind] for kind in kinds}
    return LinkKinds(chosen, named_by="auto", description="auto", host="here", device=device)


def add(cluster: FakeCluster, worker_id: str, device: str, kinds: tuple[str, ...] = ("nccl", "gloo")) -> FakeWorker:
    return cluster.add(worker_id, make_links=partial(gpu_worker, device=device, kinds=kinds))


@in_loop
async def test_workers_with_a_gpu_each_hand_over_by_nccl() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(add(cluster, "p", "GPU-0"), add(cluster, "d", "GPU-1"))
        handoff.run()
        await handoff.until_over()
        (link,) = handoff.source.endpoint.stats().links
        assert (link.kind, link.why) == ("nccl", "auto: each worker has a GPU of its own")


@in_loop
async def test_workers_on_one_gpu_go_past_nccl_and_say_why() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(add(cluster, "p", "GPU-0"), add(cluster, "d", "GPU-0"))
        handoff.run()
        await handoff.until_over()
        (link,) = handoff.source.endpoint.stats().links
        assert (link.kind, link.link_epoch) == ("gloo", 1)  # nccl was not even tried
        assert link.why == "auto: nccl cannot link two workers on one GPU (GPU-0); both workers have it"


@in_loop
async def test_workers_on_one_gpu_that_have_nothing_but_nccl_are_refused_by_its_name() -> None:
    async with running(FakeCluster()) as cluster:
        source = add(cluster, "p", "GPU-0", ("nccl",))
        Handoff(source, add(cluster, "d", "GPU-0", ("nccl",))).run()
        assert "on one GPU (GPU-0)" in str((await source.engine.until("parked", "r", 1))[3])


def gloo(cache: NumpyCache, chunk_bytes: int) -> LinkKinds:
    return on_one_host(GlooLinks(cache, "127.0.0.1", open_timeout_s=WAIT_S, chunk_bytes=chunk_bytes), chunk_bytes)


def shm(cache: NumpyCache, chunk_bytes: int) -> LinkKinds:
    return on_one_host(ShmLinks(cache, chunk_bytes=chunk_bytes), chunk_bytes)


def on_one_host(links: Links, chunk_bytes: int) -> LinkKinds:
    sizes = {links.kind: chunk_bytes}
    return LinkKinds({links.kind: lambda: links}, named_by="a test", description="", host="here", chunk_bytes=sizes)


@pytest.mark.parametrize("make", [gloo, shm])
@pytest.mark.parametrize("sizes", [(8 << 20, 4096), (4096, 8 << 20)])
@in_loop
async def test_workers_that_cut_chunks_differently_agree_on_the_smaller(
    make: Callable[..., LinkKinds], sizes: tuple[int, int]
) -> None:
    async with running(FakeCluster()) as cluster:
        source, target = (
            cluster.add(name, layout=WIDE, shared=True, make_links=partial(make, chunk_bytes=size))
            for name, size in zip("pd", sizes, strict=True)
        )
        handoff = Handoff(source, target)
        handoff.run()
        await handoff.until_over()
        (link,) = source.endpoint.stats().links
        assert link.link_epoch == 1  # none was lost on the way
