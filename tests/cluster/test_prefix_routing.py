"""A gateway names blocks as workers do, and what it believes of their caches is what is in them."""

import asyncio
import time
from dataclasses import replace

import pytest

from tests.cluster.local_cluster import BLOCK_TOKENS, LocalCluster, make_plan, running
from twinpool.cluster.block_names import BlockNames, Naming
from twinpool.cluster.prefix_routing import MAX_PROMPTS, PrefixRouting
from twinpool.core.messages import Goal, Request, Role, WorkerConfig
from twinpool.core.sampling import SamplingParams
from twinpool.model.block_hash import short_names
from twinpool.model.kv_layout import KVLayout
from twinpool.model.sequence import Sequence
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

LAYOUT = KVLayout(2, 2, BLOCK_TOKENS, 16, "float32", "a model")
PROMPT = tuple(range(5 * BLOCK_TOKENS + 3))
GOAL = Goal(10.0, 1.0)


def request_of(token_ids: tuple[int, ...] = PROMPT, *, salt: str = "", lossless: bool = False) -> Request:
    sampling = SamplingParams(max_tokens=4, seed=0)
    return Request("r", 1, token_ids, len(token_ids), sampling, GOAL, tenant_salt=salt, lossless_kv=lossless)


def config_of(codec: str) -> WorkerConfig:
    return WorkerConfig("w", Role.MIXED, "a model", 512, 1 << 20, BLOCK_TOKENS, codec=codec)


def hello_of(worker_id: str, codec: str = "raw", layout: KVLayout = LAYOUT) -> pb.WorkerHello:
    return pb.WorkerHello(
        address=pb.WorkerAddress(worker_id=worker_id),
        model=layout.model,
        kv_dtype=layout.dtype,
        block_tokens=layout.block_tokens,
        kv_qualities=Naming.of(config_of(codec), layout).qualities,
    )


def routing_with(request: Request, num_blocks: int, codec: str = "raw", quality: int = 0) -> PrefixRouting:
    """Of one worker, whose pool has named the request's leading blocks itself."""
    routing = PrefixRouting()
    routing.joined(hello_of("w", codec))
    sequence = Sequence(request, "g", 0.0, list(request.token_ids))
    chain = BlockNames(config_of(codec), LAYOUT).chains(sequence, may_be_lossy=True)[quality]
    stored = short_names(chain.hashes[:num_blocks])
    assert not routing.told("w", pb.CacheEvents(sequence=1, cleared=True, stored=stored))
    return routing


def cached(routing: PrefixRouting, request: Request) -> int:
    tokens = routing.cached_tokens(request, ("w",))
    assert tokens is not None
    return int(tokens[0])


def test_blocks_are_found_under_the_names_that_workers_give_them() -> None:
    assert cached(routing_with(request_of(), 3), request_of()) == 3 * BLOCK_TOKENS


def test_one_token_at_least_is_left_to_compute() -> None:
    whole = request_of(PROMPT[: 4 * BLOCK_TOKENS])
    assert cached(routing_with(whole, 4), whole) == 3 * BLOCK_TOKENS


def test_tenants_see_nothing_of_each_other() -> None:
    routing = routing_with(request_of(salt="one"), 3)
    assert cached(routing, request_of(salt="one")) == 3 * BLOCK_TOKENS
    assert cached(routing, request_of(salt="two")) == 0


def test_lossy_blocks_count_for_those_who_may_be_given_them() -> None:
    routing = routing_with(request_of(), 3, codec="int8", quality=1)
    assert cached(routing, request_of()) == 3 * BLOCK_TOKENS
    assert cached(routing, request_of(lossless=True)) == 0


def test_a_prompt_that_is_scored_is_computed_whole() -> None:
    request = request_of()
    scored = replace(request, sampling=replace(request.sampling, prompt_logprobs=0))
    assert routing_with(request, 3).cached_tokens(scored, ("w",)) is None


def test_nothing_is_known_before_a_worker_has_cached_something() -> None:
    routing = PrefixRouting()
    assert routing.cached_tokens(request_of(), ()) is None
    routing.joined(hello_of("w"))
    assert routing.cached_tokens(request_of(), ("w",)) is None


def test_missing_words_ask_for_the_list() -> None:
    routing = routing_with(request_of(), 3)
    assert routing.told("w", pb.CacheEvents(sequence=3, stored=[1]))
    assert not routing.told("w", pb.CacheEvents(sequence=4, stored=[1]))


def test_prompts_are_named_once_and_not_kept_for_ever() -> None:
    routing = routing_with(request_of(), 3)
    requests = [request_of((number, *PROMPT)) for number in range(MAX_PROMPTS + 10)]
    for request in requests:
        routing.cached_tokens(request, ("w",))
        routing.cached_tokens(replace(request, request_id="another of the call"), ("w",))
    assert len(routing._prompts) == MAX_PROMPTS


# --- in a cluster -------------------------------------------------------------------------------------------------


async def until_told(cluster: LocalCluster) -> None:
    """Every worker's cache is known to the gateway as it is."""
    deadline = time.monotonic() + 5
    while not all(is_told(cluster, worker_id) for worker_id in cluster.workers):
        assert time.monotonic() < deadline, "the gateway does not know what is cached"
        await asyncio.sleep(0.01)


def is_told(cluster: LocalCluster, worker_id: str) -> bool:
    prefixes = cluster.gateway.prefixes
    assert prefixes is not None
    names = short_names(list(cluster.workers[worker_id].engine.pool._block_of))
    holders = prefixes.index._holders
    column = prefixes.index._sources[worker_id].column
    known = {key for key, mask in [*holders._young.items(), *holders._old.items()] if mask >> column & 1}
    return known == set(names)


def tokens(first: int, num_blocks: int) -> list[int]:
    return [(first * 7 + place) % 500 for place in range(num_blocks * BLOCK_TOKENS + 1)]


@pytest.mark.slow
def test_a_gateway_knows_what_its_workers_have_cached_whatever_comes_and_goes() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1, worker={"kv_bytes": 1 << 17})) as cluster:
            for first in range(30):
                await cluster.client.generate(tokens(first % 20, 4 + first % 3), max_tokens=9)
            await until_told(cluster)
            assert cluster.gateway.prefixes is not None
            assert cluster.gateway.prefixes.index.num_blocks
            assert cluster.gateway.prefixes.index.num_gaps == 0
            await cluster.assert_idle()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_gateway_that_missed_something_asks_for_the_list_and_is_right_again() -> None:
    async def scenario() -> None:
        async with running(make_plan(0, 0, 1)) as cluster:
            await cluster.client.generate(tokens(1, 4), max_tokens=2)
            await until_told(cluster)
            prefixes = cluster.gateway.prefixes
            assert prefixes is not None
            prefixes.told("mixed-0", pb.CacheEvents(sequence=1000, stored=[1]))
            await cluster.client.generate(tokens(2, 4), max_tokens=2)
            await until_told(cluster)
            assert prefixes.index.num_gaps >= 1

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_policy_that_looks_at_no_cache_is_told_of_none() -> None:
    async def scenario() -> None:
        async with running(make_plan(0, 0, 1, policy="round_robin")) as cluster:
            await cluster.client.generate(tokens(1, 4), max_tokens=2)
            assert cluster.gateway.prefixes is None
            assert cluster.workers["mixed-0"].engine.pool._changes is None

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "num_holders"), [("prefix_aware", 1), ("slo", 1), ("least_loaded", 2)])
def test_the_other_answers_to_a_prompt_go_where_it_is_cached(policy: str, num_holders: int) -> None:
    async def scenario() -> None:
        plan = make_plan(0, 0, 2, policy=policy, disaggregate="never")
        async with running(plan) as cluster:
            result = await cluster.client.generate(tokens(3, 40), max_tokens=100, n=2)
            assert [len(choice.token_ids) for choice in result.choices] == [100, 100]
            holders = [worker for worker in cluster.workers.values() if worker.engine.pool.num_cached]
            assert len(holders) == num_holders
            await cluster.assert_idle()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_prompt_that_was_served_goes_to_its_holders_again() -> None:
    async def scenario() -> None:
        async with running(make_plan(2, 2, policy="prefix_aware")) as cluster:
            first = await cluster.client.generate(tokens(3, 30), max_tokens=3)
            await until_told(cluster)
            for _ in range(3):
                again = await cluster.client.generate(tokens(3, 30), max_tokens=3)
                assert again.usage.cached_tokens == 30 * BLOCK_TOKENS
                assert again.timings.prefill_worker == first.timings.prefill_worker
                assert again.timings.decode_worker == first.timings.decode_worker
                assert again.timings.kv_bytes < first.timings.kv_bytes / 10

    asyncio.run(scenario())
