"""Whole handoffs between endpoints in one process that nothing disturbs, and those that are refused."""

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork

from .fake_workers import APART, QUICK, FakeCluster, Handoff, eventually, in_loop, running
from .fakes import LAYOUT, WAIT_S, NumpyCache, wait_until

pytestmark = pytest.mark.slow


def gloo_links(cache: NumpyCache) -> GlooLinks:
    return GlooLinks(cache, "127.0.0.1", open_timeout_s=WAIT_S)


# --- Undisturbed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_links", [None, gloo_links], ids=["memory", "gloo"])
@in_loop
async def test_a_handoff_moves_the_kv_and_the_request(make_links: Callable[[NumpyCache], GlooLinks] | None) -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p", make_links=make_links), cluster.add("d", make_links=make_links))
        handoff.run()
        await handoff.until_over()
        assert handoff.source.engine.names() == ["granted", "release_source"]
        assert handoff.target.engine.names() == ["bind", "adopt"]
        assert handoff.source.endpoint.stats().num_outgoing == 0
        link = handoff.target.endpoint.stats().links[0]
        assert (link.peer, link.is_outgoing, link.link_epoch) == ("p", False, 1)
        assert link.num_bytes == 6 * LAYOUT.block_bytes


@in_loop
async def test_a_target_may_hear_of_a_request_from_the_source_first() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.begin()
        handoff.compute(0, 6)
        handoff.finish()
        await asyncio.sleep(0.02)
        handoff.reserve()
        await handoff.until_over()


@in_loop
async def test_groups_move_while_the_prompt_is_computed() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.reserve()
        handoff.begin()
        handoff.compute(0, 4)
        await handoff.source.engine.until("granted")
        await eventually(lambda: handoff.target.endpoint.stats().links[0].num_bytes == 4 * LAYOUT.block_bytes)
        handoff.compute(4, 6)
        handoff.finish()
        await handoff.until_over()


@in_loop
async def test_blocks_that_the_target_holds_are_not_sent() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"), skip_blocks=5)
        before = handoff.target.cache.pool.copy()
        handoff.run()
        await handoff.until_over()
        before[handoff.there[5]] = handoff.source.cache.pool[handoff.here[5]]
        assert np.array_equal(handoff.target.cache.pool, before)


@in_loop
async def test_many_handoffs_share_a_pair_and_a_link() -> None:
    async with running(FakeCluster()) as cluster:
        source, target = cluster.add("p"), cluster.add("d")
        ids = np.random.default_rng(5).permutation(30)
        handoffs = [
            Handoff(source, target, f"r{i}", 1, num_tokens=4 * 3, here=tuple(ids[i : i + 3]), there=(i, i + 1, i + 2))
            for i in range(0, 30, 3)
        ]
        for handoff in handoffs:
            handoff.reserve()
            handoff.begin()
        for handoff in handoffs:
            handoff.compute(0, 3)
            handoff.finish()
        for handoff in handoffs:
            await handoff.until_over()
        assert len(cluster.channels) == 1
        assert cluster.said_kinds().count("open_link") == 1


@in_loop
async def test_two_workers_may_be_source_and_target_of_each_other() -> None:
    async with running(FakeCluster()) as cluster:
        one, other = cluster.add("a"), cluster.add("b")
        handoffs = [Handoff(one, other), Handoff(other, one, "s", here=(12, 13, 14), there=(15, 16, 17), num_tokens=9)]
        handoffs[0].run()
        handoffs[1].reserve()
        handoffs[1].begin()
        handoffs[1].compute(0, 3)
        handoffs[1].finish()
        for handoff in handoffs:
            await handoff.until_over()


@in_loop
async def test_no_more_groups_than_the_window_are_announced_ahead() -> None:
    async with running(FakeCluster(network=MemoryNetwork(), limits=APART)) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d", window=2))
        cluster.network.inject(Fault.DELAY)
        handoff.reserve()
        handoff.begin()
        for block in range(6):
            handoff.compute(block, block + 1)
        handoff.finish()
        await handoff.source.engine.until("granted")
        await asyncio.sleep(0.05)
        assert cluster.said_kinds().count("next") == 2
        cluster.network.release()
        await handoff.until_over()
        assert cluster.said_kinds().count("next") == 12
        assert cluster.said_kinds().count("seal") == 1


@in_loop
async def test_a_source_that_waits_for_its_engine_keeps_the_reservation_alive() -> None:
    async with running(FakeCluster(limits=QUICK)) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.source.endpoint.meet(handoff.target.address)
        handoff.reserve()
        await asyncio.sleep(2 * QUICK.lease_s)
        handoff.begin()
        handoff.compute(0, 6)
        handoff.finish()
        await handoff.until_over()


# --- Refused --------------------------------------------------------------------------------------------------------


@in_loop
async def test_workers_whose_layouts_differ_do_not_pair_and_say_why() -> None:
    async with running(FakeCluster(limits=QUICK)) as cluster:
        other = replace(LAYOUT, dtype="bfloat16")
        handoff = Handoff(cluster.add("p"), cluster.add("d", layout=other))
        handoff.begin()
        parked = await handoff.source.engine.until("parked", "r", 1)
        assert LAYOUT.describe() in str(parked[3])
        assert other.describe() in str(parked[3])


@in_loop
async def test_a_target_that_was_started_anew_is_not_taken_for_its_former_self() -> None:
    async with running(FakeCluster(limits=QUICK)) as cluster:
        source, target = cluster.add("p"), cluster.add("d")
        target.address = replace(target.address, incarnation="0")
        Handoff(source, target).begin()
        assert "anew" in str((await source.engine.until("parked"))[3])


@in_loop
async def test_a_target_that_nobody_can_reach_parks_the_kv() -> None:
    async with running(FakeCluster(limits=QUICK)) as cluster:
        source = cluster.add("p")
        source.endpoint.begin_source("r", 1, 4, [0], WorkerAddress("x", "1", "x:1"))
        assert "nobody answers" in str((await source.engine.until("parked"))[3])
        await source.engine.until("release_source", "r", 1)


@in_loop
async def test_a_link_of_another_kind_is_refused_by_name() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d", make_links=gloo_links))
        handoff.run()
        parked = await handoff.source.engine.until("parked", "r", 1)
        assert "over gloo, not over memory" in str(parked[3])
        await handoff.target.engine.until("release_target", "r", 1)


@in_loop
async def test_a_source_that_the_gateway_did_not_name_is_refused() -> None:
    async with running(FakeCluster(limits=QUICK)) as cluster:
        stranger, target = cluster.add("x"), cluster.add("d")
        target.endpoint.reserve("r", 1, 22, WorkerAddress("p", "1", "p:1"))
        Handoff(stranger, target).begin()
        assert "another source" in str((await stranger.engine.until("parked"))[3])
        assert target.engine.events == []


# --- The end --------------------------------------------------------------------------------------------------------


@in_loop
async def test_closing_in_mid_stream_leaves_no_thread_and_no_descriptor() -> None:
    def num_open_files() -> int:
        return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))

    async def disturb() -> None:
        async with running(FakeCluster()) as cluster:
            handoff = Handoff(cluster.add("p", make_links=gloo_links), cluster.add("d", make_links=gloo_links))
            handoff.reserve()
            handoff.begin()
            handoff.compute(0, 3)
            await eventually(lambda: any(link.num_bytes for link in handoff.target.endpoint.stats().links))
            handoff.compute(3, 6)

    await disturb()
    num_files, num_threads = num_open_files(), threading.active_count()
    for _ in range(3):
        await disturb()
    wait_until(lambda: num_open_files() <= num_files and threading.active_count() <= num_threads)
