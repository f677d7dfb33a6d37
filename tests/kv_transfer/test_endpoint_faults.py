"""Whole handoffs between endpoints in one process that something disturbs: no hang, leak or adopted damage."""

import asyncio
import logging
from dataclasses import replace

import pytest

from twinpool.core.messages import FailureKind, WorkerAddress
from twinpool.kv_transfer.channel import MemoryChannel, PeerChannel, memory_channels
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.pair import Introduction

from .fake_workers import APART, QUICK, FakeCluster, FakeWorker, Handoff, eventually, in_loop, running
from .fakes import LAYOUT

pytestmark = pytest.mark.slow


@in_loop
async def test_damaged_kv_is_never_adopted() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        cluster.network.inject(Fault.CORRUPT, after=1)
        handoff.run()
        assert await handoff.target.engine.until("failed", "r", 1, FailureKind.CORRUPTED)
        assert await handoff.source.engine.until("failed", "r", 1, FailureKind.CORRUPTED)
        await handoff.target.engine.until("release_target", "r", 1)
        await handoff.source.engine.until("release_source", "r", 1)
        assert "adopt" not in handoff.target.engine.names()


@in_loop
async def test_a_lost_target_parks_the_kv_which_goes_to_another_without_being_computed_again() -> None:
    async with running(FakeCluster(network=MemoryNetwork())) as cluster:
        source, target, other = cluster.add("p"), cluster.add("d"), cluster.add("e")
        handoff = Handoff(source, target)
        cluster.network.inject(Fault.DELAY, after=1)
        handoff.run()
        await source.engine.until("granted")
        cluster.channels[0][0].cut()
        await source.engine.until("parked", "r", 1)
        assert await target.engine.until("failed", "r", 1, FailureKind.PEER_LOST)
        await target.engine.until("release_target", "r", 1)

        again = handoff.to(other, 2)
        again.reserve()
        assert source.endpoint.retarget("r", 2, other.address)
        await again.until_over()
        assert source.engine.names() == ["granted", "parked", "granted", "release_source"]


@in_loop
async def test_kv_is_retargeted_while_it_is_still_computed() -> None:
    async with running(FakeCluster()) as cluster:
        source, target, other = cluster.add("p"), cluster.add("d"), cluster.add("e")
        handoff = Handoff(source, target)
        handoff.reserve()
        handoff.begin()
        handoff.compute(0, 2)
        await source.engine.until("granted", "r", 1)
        again = handoff.to(other, 2)
        again.reserve()
        assert source.endpoint.retarget("r", 2, other.address)
        handoff.compute(2, 4)  # the engine may name either epoch
        again.compute(4, 6)
        again.finish()
        await again.until_over()
        await target.engine.until("release_target", "r", 1)


@in_loop
async def test_there_is_nothing_to_retarget_once_a_handoff_is_over() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        assert not handoff.source.endpoint.retarget("r", 2, handoff.target.address)
        handoff.run()
        assert not handoff.source.endpoint.retarget("r", 1, handoff.target.address)
        await handoff.until_over()
        assert not handoff.source.endpoint.retarget("r", 2, handoff.target.address)


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.MISLABEL, Fault.DUPLICATE, Fault.REORDER])
@in_loop
async def test_a_lost_link_is_opened_again_under_a_new_epoch(fault: Fault) -> None:
    async with running(FakeCluster(limits=APART)) as cluster:
        source, target = cluster.add("p"), cluster.add("d")
        handoff = Handoff(source, target)
        cluster.network.inject(fault, after=1)
        handoff.run()
        await source.engine.until("parked", "r", 1)
        await target.engine.until("release_target", "r", 1)
        again = handoff.to(target, 2)
        again.reserve()
        assert source.endpoint.retarget("r", 2, target.address)
        await again.until_over()
        assert [link.link_epoch for link in source.endpoint.stats().links] == [2]
        assert len(cluster.channels) == 1


@in_loop
async def test_a_lost_link_spares_handoffs_that_had_nothing_on_it() -> None:
    async with running(FakeCluster()) as cluster:
        source, target = cluster.add("p"), cluster.add("d")
        patient = Handoff(source, target, "patient", here=(10, 11), there=(21, 22), num_tokens=8)
        patient.reserve()
        patient.begin()
        patient.compute(0, 1)
        await source.engine.until("granted", "patient", 1)
        await eventually(lambda: source.endpoint.stats().links[0].num_bytes)
        cluster.network.inject(Fault.MISLABEL)
        Handoff(source, target).run()
        await source.engine.until("parked", "r", 1)
        patient.compute(1, 2)
        patient.finish()
        await patient.until_over()


@pytest.mark.parametrize("who", ["source", "target"])
@in_loop
async def test_a_cancel_in_mid_stream_releases_both_sides_and_keeps_the_link(who: str) -> None:
    async with running(FakeCluster(network=MemoryNetwork())) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        cluster.network.inject(Fault.DELAY, after=1)
        handoff.run()
        await handoff.source.engine.until("granted")
        cancelled: FakeWorker = getattr(handoff, who)
        cancelled.endpoint.cancel("r", 1, "a test")
        await asyncio.sleep(0.02)
        assert "release_target" not in handoff.target.engine.names()  # the source may still write
        cluster.network.release()
        await handoff.target.engine.until("release_target", "r", 1)
        if who == "target":
            await handoff.source.engine.until("parked", "r", 1)
            handoff.source.endpoint.cancel("r", 1, "a test")
        await handoff.source.engine.until("release_source", "r", 1)
        after = replace(handoff, request_id="s")
        after.run()
        await after.until_over()
        assert handoff.source.endpoint.stats().links[0].link_epoch == 1


@in_loop
async def test_kv_that_waits_for_room_can_be_demoted() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.begin()
        handoff.compute(0, 6)
        handoff.finish()
        handoff.source.endpoint.demote("r", 1, "room")
        assert await handoff.source.engine.until("failed", "r", 1, FailureKind.PREEMPTED)
        await handoff.source.engine.until("release_source", "r", 1)


@in_loop
async def test_an_engine_that_reports_a_span_twice_costs_its_request_only(caplog: pytest.LogCaptureFixture) -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.reserve()
        handoff.begin()
        with caplog.at_level(logging.CRITICAL):
            handoff.compute(0, 3)
            handoff.compute(2, 4)
        assert await handoff.source.engine.until("failed", "r", 1, FailureKind.INTERNAL)
        await handoff.target.engine.until("release_target", "r", 1)
        after = replace(handoff, request_id="s")
        after.run()
        await after.until_over()


@in_loop
async def test_blocks_bound_for_a_request_that_is_gone_stay_the_engines() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.target.endpoint.reserve("r", 1, 22, handoff.source.address)
        handoff.begin()
        await handoff.target.engine.until("bind", "r", 1)
        handoff.target.endpoint.cancel("r", 1, "a test")
        assert not handoff.target.endpoint.bound("r", 1, handoff.there, 0)
        assert not handoff.target.endpoint.bound("unknown", 1, handoff.there, 0)
        await handoff.source.engine.until("parked", "r", 1)


@in_loop
async def test_an_announcement_that_no_gateway_confirms_lapses() -> None:
    async with running(FakeCluster(limits=QUICK)) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.begin()
        assert "gateway" in str((await handoff.source.engine.until("parked", "r", 1))[3])
        await handoff.source.engine.until("release_source", "r", 1)


@in_loop
async def test_a_target_that_falls_silent_is_lost_by_the_lease() -> None:
    ends: list[MemoryChannel] = []

    async def dial(address: WorkerAddress) -> PeerChannel:
        ours, theirs = memory_channels()
        ends.append(theirs)
        theirs.send(Introduction(address, LAYOUT).hello())
        return ours

    async with running(FakeCluster(limits=QUICK)) as cluster:
        source = cluster.add("p", dial=dial)
        source.endpoint.begin_source("r", 1, 4, [0], WorkerAddress("d", "1", "d:1"))
        await source.engine.until("parked", "r", 1)
        await source.engine.until("release_source", "r", 1)
        await eventually(lambda: not source.endpoint.stats().links)
