"""A real decoder in a cluster: however requests are placed and batched, fp32 answers are those of one at a time."""

import asyncio
import random
from typing import Any

import pytest

from tests.cluster.local_cluster import LocalCluster, make_plan, running

WORKER = {"model": "dummy:tiny", "dtype": "float32", "block_tokens": 16, "kv_bytes": 16 << 20, "max_model_len": 256}
Requests = list[tuple[list[int], dict[str, Any]]]


def make_requests(count: int = 14) -> Requests:
    """Mixed lengths, greedy and seeded; some begin alike, some are longer than a chunk."""
    rng = random.Random(5)
    shared = [rng.randrange(512) for _ in range(100)]
    requests: Requests = []
    for number in range(count):
        own = [rng.randrange(512) for _ in range(rng.randint(1, 60))]
        prompt = shared[: rng.choice((0, 33, 100))] + own
        sampling: dict[str, Any] = {"max_tokens": rng.randint(1, 30), "temperature": 0.0, "seed": number}
        if number % 2:
            sampling |= {"temperature": 0.9, "top_k": rng.choice((0, 20)), "top_p": rng.choice((1.0, 0.8))}
        requests.append((prompt, sampling))
    return requests


async def one_at_a_time(cluster: LocalCluster, requests: Requests) -> list[tuple[int, ...]]:
    return [(await cluster.client.generate(prompt, **sampling)).token_ids for prompt, sampling in requests]


async def together(cluster: LocalCluster, requests: Requests) -> list[tuple[int, ...]]:
    calls = [cluster.client.generate(prompt, **sampling) for prompt, sampling in requests]
    return [result.token_ids for result in await asyncio.gather(*calls)]


@pytest.mark.slow
def test_disaggregated_equals_colocated_equals_one_at_a_time() -> None:
    async def scenario() -> None:
        requests = make_requests()
        async with running(make_plan(0, 0, 1, worker=WORKER | {"prefix_cache": False})) as alone:
            expected = await one_at_a_time(alone, requests)
        async with running(make_plan(0, 0, 2, worker=WORKER)) as colocated:
            assert await together(colocated, requests) == expected
            await colocated.assert_idle()
        async with running(make_plan(2, 2, worker=WORKER, policy="round_robin")) as disaggregated:
            assert await together(disaggregated, requests) == expected
            assert await together(disaggregated, requests) == expected  # now with both sides' prefix caches warm
            await disaggregated.assert_idle()

    asyncio.run(scenario())


@pytest.mark.slow
def test_mixed_workers_prefill_in_chunks_beside_their_decodes() -> None:
    async def scenario() -> None:
        requests = make_requests()
        async with running(make_plan(0, 0, 1, worker=WORKER | {"chunk_tokens": 512})) as whole:
            expected = await one_at_a_time(whole, requests)
        async with running(make_plan(0, 0, 1, worker=WORKER | {"chunk_tokens": 20})) as chunked:
            assert await together(chunked, requests) == expected

    asyncio.run(scenario())
