"""A target whose source is the test: what it may say, and what it is hung up on for."""

import asyncio

import numpy as np
import pytest

from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.channel import ChannelClosed, memory_channels
from twinpool.kv_transfer.handoff import Next, Seal, Started
from twinpool.kv_transfer.link import Ticket
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.pair import Introduction
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.wire import message_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

from .fake_workers import FakeCluster, FakeWorker, eventually, in_loop, running
from .fakes import LAYOUT, Ears, NumpyCache, make_group

pytestmark = pytest.mark.slow


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
