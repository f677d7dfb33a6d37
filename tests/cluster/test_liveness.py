"""Whatever the order of events: every request ends with the right tokens, and no block stays behind."""

import random

import pytest

from tests.cluster.engine_builders import make_config, make_request
from tests.cluster.handoff_world import World
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_shape import modelled_shape

SHAPE = modelled_shape("modelled:instant")


def run_world(seed: int, *, num_blocks: int, num_requests: int, prefix_cache: bool = True) -> World:
    kv_bytes = num_blocks * 8 * SHAPE.kv_token_bytes
    configs = [
        make_config(worker_id=f"mixed-{i}", kv_bytes=kv_bytes, max_model_len=num_blocks * 8, prefix_cache=prefix_cache)
        for i in range(2)
    ]
    world = World(configs, seed)
    rng = random.Random(seed)
    for number in range(num_requests):
        start = rng.randrange(3)  # some prompts begin alike
        prompt = range(start, start + rng.randint(1, num_blocks * 4))
        room = num_blocks * 8 - len(prompt)
        request = make_request(
            f"r{number:02}", prompt, max_tokens=rng.randint(1, room), temperature=rng.choice((0.0, 1.0)), seed=seed
        )
        world.submit(request, *rng.choice(((0, 1), (1, 0), (0, 1), (1, 0), (0, 0), (1, 1))))
    world.run()
    world.check()
    return world


@pytest.mark.parametrize("seed", range(12))
def test_two_mixed_workers_with_tiny_pools_finish_every_request(seed: int) -> None:
    world = run_world(seed, num_blocks=8, num_requests=16, prefix_cache=seed % 3 != 0)
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
    assert sum(run_world(seed, num_blocks=8, num_requests=16).num_preempted for seed in range(12)) > 0
