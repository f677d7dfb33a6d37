"""Whatever the order of events: every request ends with the right tokens, and no block stays behind."""

import functools
import random

import pytest

from tests.cluster.engine_builders import make_config, make_request
from tests.cluster.handoff_world import World
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_shape import modelled_shape

SHAPE = modelled_shape("modelled:instant")


NUM_BLOCKS, NUM_REQUESTS = 8, 16
SEEDS = [seed if seed < 3 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(12)]


@functools.cache  # two tests look at the same worlds
def run_world(seed: int) -> World:
    """Sixteen requests on two workers of eight blocks; every third world has no prefix cache."""
    size = NUM_BLOCKS * 8
    config = {"kv_bytes": size * SHAPE.kv_token_bytes, "max_model_len": size, "prefix_cache": seed % 3 != 0}
    world = World([make_config(worker_id=f"mixed-{i}", **config) for i in range(2)], seed)
    rng = random.Random(seed)
    for number in range(NUM_REQUESTS):
        start = rng.randrange(3)  # some prompts begin alike
        prompt = range(start, start + rng.randint(1, size // 2))
        room = size - len(prompt)
        request = make_request(
            f"r{number:02}", prompt, max_tokens=rng.randint(1, room), temperature=rng.choice((0.0, 1.0)), seed=seed
        )
        world.submit(request, *rng.choice(((0, 1), (1, 0), (0, 1), (1, 0), (0, 0), (1, 1))))
    world.run()
    world.check()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_two_mixed_workers_with_tiny_pools_finish_every_request(seed: int) -> None:
    world = run_world(seed)
    for request_id, request in world.requests.items():
        prompt = request.token_ids[: request.num_prompt_tokens]
        expected = oracle_tokens(SHAPE, prompt, request.sampling, request.sampling.max_tokens)
        answer = world.answers[request_id]
        assert [answer[index] for index in range(len(answer))] == expected
    for node in world.nodes:
        assert node.engine.pool.is_idle
        assert all(part.machine.is_over for part in (*node.sources.values(), *node.targets.values()))


@pytest.mark.slow
def test_tiny_pools_do_reach_the_state_where_parked_blocks_are_given_up() -> None:
    assert sum(run_world(seed).num_preempted for seed in range(12)) > 0
