"""``codec: auto`` in a whole cluster: KV is coded when its link proved slower than prefills make it, and only then."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.local_cluster import LocalCluster, make_plan, running
from twinpool.cluster.bench.transfer_links import BURST_BYTES, LimitedGlooLinks, TokenBucket
from twinpool.cluster.worker import Worker
from twinpool.kv_transfer.link import Links
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import MemoryNetwork
from twinpool.model.kv_layout import KVCache

pytestmark = pytest.mark.slow

NUM_TOKENS = 160  # ten full blocks
WORKER = {
    "model": str(Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny"),
    "dtype": "float32",
    "block_tokens": 16,
    "kv_bytes": 8 << 20,
    "max_model_len": 256,
    "chunk_tokens": 256,
    "codec": "auto",
}
SLOW_BYTES_PER_S = 1_000_000  # a token's KV has 2 KiB, and even a slow CPU prefills 5,000 tokens a second


def limited(cache: KVCache) -> Links:
    return LimitedGlooLinks(cache, "127.0.0.1", TokenBucket(SLOW_BYTES_PER_S, BURST_BYTES), digest=True)


async def kv_bytes(cluster: LocalCluster, seed: int, **how: Any) -> int:
    """What a request with a prompt of its own put on the link."""
    prompt = random.Random(seed).choices(range(2, 2048), k=NUM_TOKENS)
    answer = await cluster.client.generate(prompt, max_tokens=3, temperature=0.0, ignore_eos=True, **how)
    return answer.timings.kv_bytes


def assert_rates_are_known(worker: Worker) -> None:
    """Layer groups were chosen by what was measured, so they are whole."""
    rates, runner = worker._endpoint.stream_rates, worker._runner
    assert rates.link_bytes_per_s
    assert rates.produced_bytes_per_s
    assert runner.layer_groups[-1] == runner.cache.layout.num_layers


def run_requests(make_links: Callable[[KVCache], Links]) -> tuple[list[int], list[int], int]:
    """Bytes on the link of four requests that allow loss and of two that do not, in turns; and of raw KV."""

    async def scenario() -> tuple[list[int], list[int], int]:
        async with running(make_plan(1, 1, worker=WORKER), make_links) as cluster:
            raw = NUM_TOKENS * cluster.workers["prefill-0"]._runner.cache.layout.token_bytes
            first = await kv_bytes(cluster, 0)  # nothing was measured yet
            lossy, exact = [first], []
            for seed in range(1, 4):
                lossy.append(await kv_bytes(cluster, seed))
                exact.append(await kv_bytes(cluster, 10 + seed, lossless_kv=True))
            await cluster.assert_idle()
            assert_rates_are_known(cluster.workers["prefill-0"])
            return lossy, exact, raw

    return asyncio.run(scenario())


def test_kv_is_coded_over_a_slow_link_once_it_was_measured_and_never_against_the_requests_word() -> None:
    lossy, exact, raw = run_requests(limited)
    assert lossy[0] == raw
    assert all(coded < raw / 3 for coded in lossy[1:])
    assert set(exact) == {raw}


def test_kv_stays_raw_over_a_link_that_keeps_up() -> None:
    network = MemoryNetwork()
    lossy, exact, raw = run_requests(lambda cache: MemoryLinks(network, cache))
    assert set(lossy) == set(exact) == {raw}
