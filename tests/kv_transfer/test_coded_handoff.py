"""Handoffs in each codec, over links in memory and over gloo: what arrives is what the codec makes of what was sent."""

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from twinpool.core.messages import FailureKind, WorkerAddress
from twinpool.kv_transfer.codec import CodecName, CodedSpan
from twinpool.kv_transfer.codec_choice import CodecRates
from twinpool.kv_transfer.codec_policy import CodecPolicy
from twinpool.kv_transfer.coder import aligned_bytes
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.handoff import Next
from twinpool.kv_transfer.link import Links
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.pair import Introduction
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.record_codec import make_codec
from twinpool.kv_transfer.wire import message_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

from .fake_workers import FakeCluster, FakeWorker, Handoff, in_loop, memory_channels, running
from .fakes import LAYOUT, NumpyCache

RAW, INT8, INT4 = CodecName.RAW, CodecName.INT8, CodecName.INT4
NUM_FULL = 5  # of the six blocks of a Handoff


def gloo_links(cache: NumpyCache) -> Links:
    return GlooLinks(cache, "127.0.0.1", chunk_timeout_s=1.0, chunk_bytes=2 * LAYOUT.block_bytes)


def add(cluster: FakeCluster, name: str, codec: str | CodecPolicy, *, gloo: bool = False) -> FakeWorker:
    """A worker whose KV is numbers."""
    worker = cluster.add(name, codec=codec, make_links=gloo_links if gloo else None)
    values = worker.cache.pool.view(np.float32)
    values[:] = np.random.default_rng(len(name)).standard_normal(values.shape, dtype=np.float32)
    return worker


def through(codec: CodecName, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What full blocks are when they come out of the codec, coded by themselves."""
    if not len(blocks):
        return blocks
    span, coder = CodedSpan(LAYOUT, len(blocks), LAYOUT.num_layers), make_codec(codec)
    raw, coded = aligned_bytes(span.raw_bytes), aligned_bytes(coder.encoded_bytes(span))
    raw[:] = blocks.reshape(-1)
    coder.encode(span, raw, coded)
    coder.decode(span, coded, raw)
    return raw.reshape(blocks.shape)


def assert_arrived(handoff: Handoff, codec: CodecName) -> None:
    """Full blocks as the codec leaves them, the partial one as it was; what was skipped is untouched."""
    first = handoff.skip_blocks
    ours = handoff.source.cache.pool[list(handoff.here)]
    theirs = handoff.target.cache.pool[list(handoff.there)]
    assert np.array_equal(theirs[first:NUM_FULL], through(codec, ours[first:NUM_FULL]))
    assert np.array_equal(theirs[NUM_FULL:], ours[NUM_FULL:])


def bytes_on_link(handoff: Handoff, codec: CodecName) -> int:
    span = Span(0, LAYOUT.num_layers, handoff.skip_blocks, len(handoff.here))
    return Coding.of(codec, handoff.num_tokens).num_bytes(span, LAYOUT)


async def until_adopted(handoff: Handoff) -> tuple[CodecName, int]:
    await handoff.target.engine.until("adopt", handoff.request_id, handoff.epoch)
    return handoff.target.engine.arrived[handoff.request_id, handoff.epoch]


@pytest.mark.parametrize("skip_blocks", [0, 2, 5])
@pytest.mark.parametrize("codec", CodecName)
@in_loop
async def test_kv_arrives_as_the_codec_leaves_it_and_partial_blocks_as_they_were(
    codec: CodecName, skip_blocks: int
) -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(add(cluster, "p", codec), add(cluster, "dd", codec), skip_blocks=skip_blocks)
        untouched = handoff.target.cache.pool[list(handoff.there[:skip_blocks])].copy()
        handoff.run()
        assert await until_adopted(handoff) == (codec, bytes_on_link(handoff, codec))
        assert_arrived(handoff, codec)
        assert np.array_equal(handoff.target.cache.pool[list(handoff.there[:skip_blocks])], untouched)
        await handoff.source.engine.until("release_source")
        counted = {link.num_bytes for worker in cluster.workers.values() for link in worker.endpoint.stats().links}
        assert counted == {bytes_on_link(handoff, codec)}


@pytest.mark.slow
@pytest.mark.parametrize("codec", [INT8, INT4])
@in_loop
async def test_a_link_thread_codes_chunk_by_chunk(codec: CodecName) -> None:
    async with running(FakeCluster()) as cluster:
        source, target = add(cluster, "p", codec, gloo=True), add(cluster, "dd", codec, gloo=True)
        first = Handoff(source, target)
        first.run()
        exact = Handoff(source, target, "exact", here=(1, 2, 5, 6, 8, 10), there=(3, 4, 6, 7, 9, 10), allows_loss=False)
        exact.run()
        assert await until_adopted(first) == (codec, bytes_on_link(first, codec))
        assert await until_adopted(exact) == (RAW, bytes_on_link(exact, RAW))
        assert_arrived(first, codec)
        assert exact.has_arrived


@in_loop
async def test_a_request_that_allows_no_loss_goes_raw_and_to_another_target_too() -> None:
    async with running(FakeCluster(network=MemoryNetwork())) as cluster:
        source, target, other = (add(cluster, name, INT4) for name in ("p", "dd", "eee"))
        handoff = Handoff(source, target, allows_loss=False)
        cluster.network.inject(Fault.DELAY, after=1)
        handoff.run()
        await source.engine.until("granted")
        cluster.channels[0][0].cut()
        await source.engine.until("parked", "r", 1)
        again = handoff.to(other, 2)
        again.reserve()
        assert source.endpoint.retarget("r", 2, other.address)
        assert await until_adopted(again) == (RAW, bytes_on_link(again, RAW))
        assert again.has_arrived


@in_loop
async def test_damage_to_coded_kv_is_found_before_it_is_decoded() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(add(cluster, "p", INT8), add(cluster, "dd", INT8))
        cluster.network.inject(Fault.CORRUPT, after=0)
        before = handoff.target.cache.pool[list(handoff.there[:2]), 0:2].copy()
        handoff.run()
        assert await handoff.target.engine.until("failed", "r", 1, FailureKind.CORRUPTED)
        assert await handoff.source.engine.until("failed", "r", 1, FailureKind.CORRUPTED)
        await handoff.target.engine.until("release_target", "r", 1)
        await handoff.source.engine.until("release_source", "r", 1)
        assert np.array_equal(handoff.target.cache.pool[list(handoff.there[:2]), 0:2], before)


@in_loop
async def test_workers_whose_codecs_differ_refuse_each_others_kv_and_say_so() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(add(cluster, "p", INT4), add(cluster, "dd", INT8))
        handoff.run()
        failed = await handoff.target.engine.until("failed", "r", 1, FailureKind.INTERNAL)
        assert failed[4] == "the source sends int4; this worker takes raw, int8"
        assert failed[4] in str(await handoff.source.engine.until("parked", "r", 1))
        exact = Handoff(handoff.source, handoff.target, "exact", allows_loss=False)
        exact.run()
        await exact.until_over()


@pytest.mark.parametrize(
    "message",
    [
        pb.PeerMessage(started=pb.Started(request_id="r", epoch=1, num_tokens=8, codec="zip")),
        message_to_proto(Next("r", 1, 0, Span(0, 3, 0, 3), Coding(INT8, 8))),  # 8 tokens have two blocks
    ],
)
@in_loop
async def test_a_source_that_names_no_codec_or_no_size_is_hung_up_on(message: pb.PeerMessage) -> None:
    async with running(FakeCluster()) as cluster:
        target = add(cluster, "dd", INT8)
        ours, theirs = memory_channels()
        serving = asyncio.create_task(target.endpoint.serve(theirs))
        ours.send(Introduction(WorkerAddress("p", "1", "p:1"), LAYOUT).hello())
        ours.send(message)
        async with asyncio.timeout(20):
            await serving


@in_loop
async def test_auto_codes_once_a_link_proved_slower_than_the_prefills_and_never_unasked() -> None:
    at_once = CodecPolicy("auto", LAYOUT, lambda name, _: CodecRates(name, 2.0, 1e15, 1e15))
    async with running(FakeCluster()) as cluster:
        source, target = add(cluster, "p", at_once), add(cluster, "dd", at_once)
        unknown = Handoff(source, target)
        unknown.run()
        assert (await until_adopted(unknown))[0] is RAW
        await source.engine.until("release_source")
        source.endpoint.produced(2**30, 0.001)  # far more than any link moves
        lossy = Handoff(source, target, "lossy")
        lossy.run()
        exact = Handoff(source, target, "exact", allows_loss=False)
        exact.run()
        assert (await until_adopted(lossy))[0] is INT8  # as good as the others
        assert (await until_adopted(exact))[0] is RAW


@in_loop
async def test_the_codec_is_told_with_the_link() -> None:
    async with running(FakeCluster()) as cluster:
        assert add(cluster, "p", INT8).endpoint.link_description == "memory, codec int8"
        assert add(cluster, "dd", RAW).endpoint.link_description == "memory"
