"""Whole handoffs between endpoints in one process, undisturbed and disturbed."""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import numpy as np
import pytest

from twinpool.core.messages import FailureKind, WorkerAddress
from twinpool.kv_transfer.channel import ChannelClosed, MemoryChannel, PeerChannel, memory_channels
from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.handoff import Limits, Next, Seal, Started
from twinpool.kv_transfer.link import Ticket
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.pair import Introduction
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.wire import message_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

from .fake_workers import FakeCluster, FakeWorker, Handoff, eventually, running
from .fakes import LAYOUT, WAIT_S, Ears, NumpyCache, make_group, wait_until

pytestmark = pytest.mark.slow

P = ParamSpec("P")
QUICK = Limits(lease_s=0.3, park_s=0.3, announce_s=0.3, commit_s=0.3, verify_s=0.3, stop_s=0.2)


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(WAIT_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


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
    async with running(FakeCluster(network=MemoryNetwork())) as cluster:
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


# --- Disturbed ------------------------------------------------------------------------------------------------------


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
    async with running(FakeCluster()) as cluster:
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
async def test_a_prefill_that_fails_is_reported_and_released() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.reserve()
        handoff.begin()
        handoff.compute(0, 3)
        await handoff.source.engine.until("granted")
        handoff.source.endpoint.compute_failed("r", 1, "a test")
        assert await handoff.source.engine.until("failed", "r", 1, FailureKind.INTERNAL)
        await handoff.source.engine.until("release_source", "r", 1)
        await handoff.target.engine.until("release_target", "r", 1)


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


# --- A source that the test plays itself ----------------------------------------------------------------------------


class HandSource:
    """Says what the test says; reads what the target answers."""

    def __init__(self, worker: FakeWorker) -> None:
        self.channel, theirs = memory_channels()
        self.serving = asyncio.create_task(worker.endpoint.serve(theirs))
        self.channel.send(Introduction(WorkerAddress("p", "1", "p:1"), LAYOUT).hello())

    async def until(self, kind: str) -> pb.PeerMessage:
        while True:
            message = await self.channel.receive()
            if message.WhichOneof("kind") == kind:
                return message

    async def until_hung_up(self) -> None:
        with pytest.raises(ChannelClosed):
            await self.until("nothing")
        await self.serving


@in_loop
async def test_groups_of_unknown_handoffs_are_received_and_thrown_away() -> None:
    async with running(FakeCluster()) as cluster:
        target, ears = cluster.add("d"), Ears()
        before = target.cache.pool.copy()
        source = HandSource(target)
        source.channel.send(pb.PeerMessage(open_link=pb.OpenLink(link_epoch=1, kind="memory")))
        ready = (await source.until("link_ready")).link_ready
        link = MemoryLinks(cluster.network, NumpyCache(seed=9)).dial(Ticket(ready.host, ready.port, ready.ticket), ears)
        span = Span(0, 3, 0, 2)
        for seq, request_id in enumerate(("unknown", "stale")):
            source.channel.send(message_to_proto(Next(request_id, 1, seq, span)))
            link.send(make_group(seq, span, [5, 6], request_id))
        await eventually(lambda: target.endpoint.stats().links[0].num_bytes == 2 * span.num_bytes(LAYOUT))
        assert ears.heard == [("open",), ("sent", 0), ("sent", 1)]
        assert np.array_equal(target.cache.pool, before)
        source.channel.send(message_to_proto(Seal("unknown", 1, 8, 1, 0, 0.0, 0.0, 0.0, 0)))
        assert (await source.until("abort")).abort.request_id == "unknown"
        source.channel.cut()
        await source.serving


@pytest.mark.parametrize(
    "messages",
    [
        [Next("r", 1, 1, Span(0, 1, 0, 1))],
        [Next("r", 1, 0, Span(0, 1, 0, 1)), Next("r", 1, 0, Span(0, 1, 0, 1))],
        [Next("r", 1, 0, Span(0, 4, 0, 1))],
        [Next("r", 1, 0, Span(2, 2, 0, 1))],
        [Next("", 1, 0, Span(0, 1, 0, 1))],
        [Started("r", 1, 0)],
        [Seal("r", 1, 4, 1, 0, float("nan"), 0, 0, 0)],
    ],
)
@in_loop
async def test_a_source_that_makes_no_sense_is_hung_up_on(messages: list[Next | Started | Seal]) -> None:
    async with running(FakeCluster()) as cluster:
        source = HandSource(cluster.add("d"))
        for message in messages:
            source.channel.send(message_to_proto(message))
        await source.until_hung_up()


@pytest.mark.parametrize(
    "message",
    [
        pb.PeerMessage(),
        pb.PeerMessage(grant=pb.Grant(request_id="r", epoch=1, window=1)),
        pb.PeerMessage(hello=pb.PairHello()),
        pb.PeerMessage(open_link=pb.OpenLink(link_epoch=0, kind="memory")),
        pb.PeerMessage(link_ready=pb.LinkReady(link_epoch=1)),
    ],
)
@in_loop
async def test_a_source_that_says_what_it_may_not_is_hung_up_on(message: pb.PeerMessage) -> None:
    async with running(FakeCluster()) as cluster:
        source = HandSource(cluster.add("d"))
        source.channel.send(message)
        await source.until_hung_up()


@in_loop
async def test_a_source_that_calls_again_replaces_its_former_call() -> None:
    async with running(FakeCluster()) as cluster:
        target = cluster.add("d")
        former = HandSource(target)
        await former.until("heartbeat")
        latter = HandSource(target)
        await former.until_hung_up()
        await latter.until("heartbeat")
        latter.channel.cut()
        await latter.serving


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
