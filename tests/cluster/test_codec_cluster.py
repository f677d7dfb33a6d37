"""The demo model in a cluster, its KV in each codec: how far KV may be off, and who may be given it."""

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cluster.local_cluster import LocalCluster, make_plan, running
from twinpool.cluster.worker import Worker
from twinpool.core.errors import SpecError
from twinpool.core.messages import Role, WorkerConfig
from twinpool.kv_transfer.codec import CodecName, quality
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.plan import Span
from twinpool.model.block_hash import block_hashes, root_hash
from twinpool.model.block_pool import RefKind

BLOCK_TOKENS = 16
WORKER = {
    "model": str(Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny"),
    "dtype": "float32",
    "block_tokens": BLOCK_TOKENS,
    "kv_bytes": 8 << 20,
    "max_model_len": 256,
}
NUM_TOKENS = 100  # six full blocks and a partial one
ANSWER: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
# Of the largest magnitude: half a step of int8, of fp8's mantissa, of 15 or 3 steps over twice the peak; and rounding.
LARGEST_ERROR = {CodecName.INT8: 0.005, CodecName.FP8: 0.064, CodecName.INT4: 0.068, CodecName.INT2: 0.34}

pytestmark = pytest.mark.slow


def make_prompts(count: int = 6) -> list[list[int]]:
    rng = random.Random(11)
    return [[rng.randrange(2, 2048) for _ in range(NUM_TOKENS)] for _ in range(count)]


async def answers(cluster: LocalCluster, prompts: list[list[int]], **how: Any) -> list[tuple[int, ...]]:
    calls = [cluster.client.generate(prompt, **ANSWER, **how) for prompt in prompts]
    return [result.token_ids for result in await asyncio.gather(*calls)]


def cached_kv(worker: Worker, prompt: list[int], codec: CodecName) -> NDArray[np.float32]:
    """The prompt's full blocks in a worker's cache, of the quality that this codec leaves."""
    cache, pool = worker._runner.cache, worker.engine.pool
    layout = cache.layout
    root = root_hash(tenant_salt="", model=layout.model, dtype=layout.dtype, codec=quality(codec))
    ids = pool.acquire_prefix(block_hashes(prompt, BLOCK_TOKENS, root), NUM_TOKENS, RefKind.SEQUENCE)
    pool.release(ids, RefKind.SEQUENCE)
    out = np.empty(len(ids) * layout.block_bytes, np.uint8)
    cache.gather(0, layout.num_layers, np.array(ids), out)
    return out.view(np.float32).reshape(len(ids), -1)


def raw_answers(prompts: list[list[int]]) -> list[tuple[int, ...]]:
    async def scenario() -> list[tuple[int, ...]]:
        async with running(make_plan(1, 1, worker=WORKER)) as cluster:
            return await answers(cluster, prompts)

    return asyncio.run(scenario())


@pytest.mark.parametrize("codec", LARGEST_ERROR)
def test_kv_is_off_by_no_more_than_the_codec_says_and_not_at_all_for_who_asks(codec: CodecName) -> None:
    prompts = make_prompts()
    expected = raw_answers(prompts)

    async def scenario() -> None:
        async with running(make_plan(1, 1, worker=WORKER | {"codec": str(codec)})) as cluster:
            source, target = cluster.workers["prefill-0"], cluster.workers["decode-0"]
            assert source.hello().link == f"gloo, codec {codec}"
            lossy = await answers(cluster, prompts)
            assert [tokens[0] for tokens in lossy] == [tokens[0] for tokens in expected]  # the source chose it
            await cluster.assert_idle()
            for prompt in prompts:
                ours, theirs = cached_kv(source, prompt, CodecName.RAW), cached_kv(target, prompt, codec)
                assert ours.shape == theirs.shape == (NUM_TOKENS // BLOCK_TOKENS, ours.shape[1])
                assert 0 < np.abs(ours - theirs).max() <= LARGEST_ERROR[codec] * np.abs(ours).max()
            assert await answers(cluster, prompts, lossless_kv=True) == expected
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_kv_bytes_are_those_on_the_wire_and_say_who_was_given_what() -> None:
    prompt = make_prompts(1)[0]

    async def scenario() -> None:
        async with running(make_plan(1, 1, worker=WORKER | {"codec": "int8"})) as cluster:
            layout = cluster.workers["decode-0"]._runner.cache.layout

            def size(codec: CodecName, first_block: int) -> int:
                span = Span(0, layout.num_layers, first_block, layout.num_blocks(NUM_TOKENS))
                return Coding.of(codec, NUM_TOKENS).num_bytes(span, layout)

            async def kv_bytes(**how: Any) -> int:
                return (await cluster.client.generate(prompt, **ANSWER, **how)).timings.kv_bytes

            num_full = NUM_TOKENS // BLOCK_TOKENS
            assert await kv_bytes() == size(CodecName.INT8, 0) < size(CodecName.RAW, 0) / 2
            assert await kv_bytes() == size(CodecName.INT8, num_full)  # all but the partial block were there
            assert await kv_bytes(lossless_kv=True) == size(CodecName.RAW, 0)  # and were not good enough
            assert await kv_bytes(lossless_kv=True) == size(CodecName.RAW, num_full)
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_auto_stays_raw_between_workers_that_share_memory() -> None:
    prompts = make_prompts()
    expected = raw_answers(prompts)

    async def scenario() -> None:
        async with running(make_plan(1, 1, worker=WORKER | {"codec": "auto"})) as cluster:
            worker = cluster.workers["prefill-0"]
            assert worker.hello().link == "auto: shm on this host, gloo elsewhere, codec auto"
            assert await answers(cluster, prompts) == expected
            assert await answers(cluster, [prompt[::-1] for prompt in prompts]) != expected  # rates are known now
            assert {link.kind for link in worker._endpoint.stats().links} == {"shm"}
            for prompt in prompts:
                ours, theirs = (cached_kv(worker, prompt, CodecName.RAW) for worker in cluster.workers.values())
                assert np.array_equal(ours, theirs)
                assert len(ours) == NUM_TOKENS // BLOCK_TOKENS
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_a_worker_whose_kv_the_codec_does_not_take_does_not_start() -> None:
    async def scenario() -> None:
        config = WorkerConfig("decode-0", Role.DECODE, "modelled:instant", 64, 1 << 20, 8, codec="int8")
        with pytest.raises(SpecError, match=r"^transfer\.codec: codec int8: head_dim 2"):
            await Worker(config, clock=lambda: 0.0).start()

    asyncio.run(scenario())
