"""Too little memory for what was let in: the young give way and come back, all answers are right, nobody thrashes."""

import asyncio
import random
from typing import Any

import pytest

from tests.cluster.engine_builders import Optimist, Recorder, make_config, make_engine, make_request, make_sequence
from tests.cluster.handoff_world import World
from tests.cluster.local_cluster import LocalCluster, make_plan, running
from twinpool.cluster.engine_events import Destination
from twinpool.cluster.outbox import view_of
from twinpool.core.messages import Request
from twinpool.core.sampling import SamplingParams
from twinpool.decode_worker.lengths import MIN_HISTORY, LengthHistory
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_shape import modelled_shape

SHAPE = modelled_shape("modelled:instant")
NUM_BLOCKS = 8
NUM_REQUESTS = 50
Route = tuple[int, int]
ROUTES: dict[str, tuple[Route, ...]] = {
    "a prefill and a decode worker": ((0, 1),),
    "one worker, local plans": ((0, 0),),
    "two mixed workers, all plans": ((0, 1), (1, 0), (0, 0), (1, 1)),
}
WORLDS = [  # each plan and each size once; the other pairs are slow
    pytest.param(plans, size, marks=() if size == first else pytest.mark.slow)
    for plans, first in zip(ROUTES, (1, 2, 4), strict=True)
    for size in (1, 2, 4)
]


def misled() -> LengthHistory:
    """Knows short answers only."""
    history = LengthHistory()
    for _ in range(MIN_HISTORY):
        history.add(2)
    return history


def oracle(request: Request) -> list[int]:
    prompt = request.token_ids[: request.num_prompt_tokens]
    return oracle_tokens(SHAPE, prompt, request.sampling, request.sampling.max_tokens)


def run_world(routes: tuple[Route, ...], block_tokens: int, seed: int, history: type[Optimist] | None = None) -> World:
    """Fifty requests at once on two workers of eight blocks, whose histories promise too much."""
    size = NUM_BLOCKS * block_tokens
    config = {"kv_bytes": size * SHAPE.kv_token_bytes, "max_model_len": size, "block_tokens": block_tokens}
    world = World([make_config(worker_id=f"w{i}", prefix_cache=seed % 2 == 0, **config) for i in range(2)], seed)
    for node in world.nodes:
        node.engine.decode.lengths = misled() if history is None else history()
    rng = random.Random(seed)
    for number in range(NUM_REQUESTS):
        world.now += 0.001
        start = rng.randrange(3)  # some prompts begin alike
        prompt = range(start, start + rng.randint(1, size // 2))
        max_tokens = rng.randint(1, size - len(prompt))
        request = make_request(f"r{number:02}", prompt, max_tokens=max_tokens, temperature=number % 2, seed=seed)
        world.submit(request, *rng.choice(routes))
    world.run(100_000)
    world.check()
    return world


def num_preempted(world: World) -> int:
    return sum(node.engine.load().preempted for node in world.nodes)


def assert_answers_are_right(world: World) -> None:
    for request_id, request in world.requests.items():
        answer = world.answers[request_id]
        assert [answer[index] for index in range(len(answer))] == oracle(request)
    for node in world.nodes:
        assert node.engine.pool.is_idle
        node.engine.decode.check()


@pytest.mark.parametrize(("plans", "block_tokens"), WORLDS)
def test_every_request_ends_right_and_few_give_way(plans: str, block_tokens: int) -> None:
    """Letting in by current use costs more than twice as many preemptions: see the next test."""
    world = run_world(ROUTES[plans], block_tokens, seed=block_tokens + 1)
    assert_answers_are_right(world)
    assert 0 < num_preempted(world) <= NUM_REQUESTS // 3


@pytest.mark.slow
@pytest.mark.parametrize("plans", list(ROUTES)[:2])
def test_letting_in_by_current_use_would_thrash_and_still_answer_right(plans: str) -> None:
    world = run_world(ROUTES[plans], 4, seed=4, history=Optimist)
    assert_answers_are_right(world)
    assert num_preempted(world) > 2 * num_preempted(run_world(ROUTES[plans], 4, seed=4))


def test_a_preempted_sequence_leaves_its_full_blocks_to_the_prefix_cache_and_keeps_its_age() -> None:
    events = Recorder()
    engine = make_engine(events, kv_bytes=NUM_BLOCKS * 8 * SHAPE.kv_token_bytes, max_model_len=64)
    engine.decode.lengths = misled()
    old, young = (make_request(name, range(start, start + 23), max_tokens=24) for name, start in (("a", 0), ("b", 50)))
    for request in (young, old):
        engine.submit(make_sequence(request), Destination.LOCAL)
    while engine.step():
        engine.pool.check()
        engine.decode.check()
    assert [key.request_id for key in events.preemptions] == ["b"]
    assert view_of(events.loads[-1], version=1).preempted == 1
    assert events.answer("a") == oracle(old)
    written = events.answer("b")
    assert 1 < len(written) < 24
    assert written == oracle(young)[: len(written)]

    again = Request(
        "b", 2, (*young.token_ids, *written), young.num_prompt_tokens, young.sampling, young.goal, young.priority
    )
    engine.submit(make_sequence(again), Destination.LOCAL)
    while engine.step():
        pass
    assert events.answer("b") == oracle(young)
    assert engine.pool.is_idle


def test_the_oldest_is_never_preempted_for_younger_ones() -> None:
    events = Recorder()
    kv_bytes = NUM_BLOCKS * 8 * SHAPE.kv_token_bytes
    engine = make_engine(events, kv_bytes=kv_bytes, max_model_len=64, chunk_tokens=64)
    engine.decode.lengths = Optimist()
    requests = [make_request(f"r{i}", range(i, i + 7), max_tokens=40) for i in range(6)]
    for request in reversed(requests):
        engine.submit(make_sequence(request), Destination.LOCAL)
    while engine.step():
        engine.decode.check()
    gone = [key.request_id for key in events.preemptions]
    assert gone == sorted(gone, reverse=True)  # the youngest first
    assert "r0" not in gone
    assert events.answer("r0") == oracle(requests[0])


def test_no_prompt_takes_the_blocks_that_a_grant_waits_for() -> None:
    events = Recorder()
    engine = make_engine(events, kv_bytes=NUM_BLOCKS * 8 * SHAPE.kv_token_bytes, max_model_len=64, parked_share=0.9)
    prompts = {"p": range(24), "w": range(30, 78), "z": range(80, 88)}
    parked, wanted, late = (make_request(name, prompt, max_tokens=2) for name, prompt in prompts.items())
    engine.submit(make_sequence(parked), Destination.HANDOFF)
    while engine.step():
        pass
    engine.want(make_sequence(wanted))
    engine.submit(make_sequence(late), Destination.HANDOFF)
    while engine.step():
        pass
    assert events.demoted == [make_sequence(parked).key]
    assert [key.request_id for key, _, _ in events.sources] == ["p"]
    engine.release_source(make_sequence(parked).key)
    engine.step()
    assert [key.request_id for key, _, _ in events.bindings] == ["w"]
    engine.step()
    assert [key.request_id for key, _, _ in events.sources] == ["p", "z"]


# --- a whole cluster ----------------------------------------------------------------------------------------------


async def generate_all(cluster: LocalCluster, requests: list[tuple[list[int], dict[str, Any]]]) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cluster.client.generate(prompt, **sampling)) for prompt, sampling in requests]
    return [task.result() for task in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("pools", [{"prefill": 1, "decode": 1}, {"prefill": 0, "decode": 0, "mixed": 2}], ids=str)
def test_fifty_requests_in_eight_blocks_all_end_right_through_the_gateway(pools: dict[str, Any]) -> None:
    """Optimists, for preemptions to be certain; a preemption that nobody answers would leave a request open."""
    size, rng = NUM_BLOCKS * 4, random.Random(1)
    worker = {"kv_bytes": size * SHAPE.kv_token_bytes, "max_model_len": size, "block_tokens": 4}
    requests = [
        (
            [rng.randrange(100) for _ in range(rng.randint(1, size // 4))],
            {"max_tokens": rng.randint(4, size // 2), "temperature": float(number % 2), "seed": number},
        )
        for number in range(NUM_REQUESTS)
    ]

    async def scenario() -> None:
        async with running(make_plan(**pools, worker=worker | {"model": "modelled:paced"})) as cluster:
            for each in cluster.workers.values():
                each.engine.decode.lengths = Optimist()
            for (prompt, sampling), result in zip(requests, await generate_all(cluster, requests), strict=True):
                params = SamplingParams(**sampling)
                assert list(result.token_ids) == oracle_tokens(SHAPE, prompt, params, params.max_tokens)
            await cluster.assert_idle()
            preempted = sum(each.engine.load().preempted for each in cluster.workers.values())
            assert 0 < preempted <= NUM_REQUESTS

    asyncio.run(scenario())
