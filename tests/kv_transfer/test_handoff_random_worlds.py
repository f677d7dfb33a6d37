"""Many requests at once through two small targets, in seeded worlds where everything fails for a while."""

import pytest

from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer.handoff import Limits
from twinpool.simulator.handoff_cluster import Cluster
from twinpool.simulator.world import Faults, World

pytestmark = pytest.mark.slow

LIMITS = Limits(lease_s=4, park_s=3, announce_s=3, commit_s=2, verify_s=1.5, stop_s=1)
POOL_BLOCKS = {"d1": 9, "d2": 8}  # the longest request takes 8: nearly everything waits for somebody
TROUBLE_S, END_S = 6.0, 240.0


def _begin(seed: int, num_requests: int = 8) -> tuple[World, Cluster]:
    world = World(seed)
    cluster = Cluster(world, LIMITS, POOL_BLOCKS)
    for number in range(num_requests):
        num_tokens = world.random.randint(1, 32)
        world.at(world.random.uniform(0, 3), lambda n=number, t=num_tokens: cluster.submit(f"r{n}", t))
    return world, cluster


def _make_trouble(world: World, cluster: Cluster) -> None:
    draw = world.random
    rates = [draw.choice([0.0, 0.0, 0.03, 0.15]) for _ in range(3)]
    cluster.network.faults = Faults(0.0001, draw.choice([0.002, 0.5]), *rates)
    cluster.corrupt = draw.choice([0.0, 0.0, 0.1])
    mishaps = [
        lambda: cluster.links[draw.choice(["d1", "d2"])].close(),
        lambda: cluster.cancel(draw.choice(list(cluster.calls))) if cluster.calls else None,
        lambda: _demote(cluster),
        lambda: cluster.network.part("p", draw.choice(["d1", "d2"])),
        lambda: cluster.network.mend("p", draw.choice(["d1", "d2"])),
        lambda: cluster.crash("d1"),
    ]
    for mishap in draw.choices(mishaps, weights=[4, 2, 3, 1, 2, 1], k=draw.randint(0, 8)):
        world.at(draw.uniform(0, TROUBLE_S), mishap)
    world.at(TROUBLE_S, lambda: _end_trouble(cluster))


def _demote(cluster: Cluster) -> None:
    ends = [end for ends in cluster.sources.values() for end in ends if end.machine.is_waiting_for_room]
    if ends:
        cluster.world.random.choice(ends).tell(ev.Demote("room for others"))


def _end_trouble(cluster: Cluster) -> None:
    cluster.network.faults, cluster.corrupt = Faults(), 0.0
    for name in cluster.targets:
        cluster.network.mend("p", name)


def _unsettled(cluster: Cluster) -> list[str]:
    """What is left to happen, in words."""
    left = [f"{call.request_id} has no outcome" for call in cluster.calls.values() if not call.outcome]
    for ends in cluster.sources.values():
        left += [f"source of {end.machine.request_id} {end.machine.phase}" for end in ends if not end.machine.is_over]
    for target in cluster.targets.values():
        left += [f"{target.name} {end.machine.request_id} {end.machine.phase}" for end in target.live_ends()]
        if target.is_alive and target.free_blocks != POOL_BLOCKS[target.name]:
            left.append(f"{target.name} has {target.free_blocks} free blocks")
    return left


def _settle(world: World, cluster: Cluster) -> None:
    world.run(until=TROUBLE_S)
    while _unsettled(cluster) and world.now < END_S:
        world.run(until=world.now + 5)
    assert not _unsettled(cluster)
    for end in [end for ends in cluster.sources.values() for end in ends]:
        assert (end.num_releases, end.holds_blocks) == (1, False)
    for end in [end for target in cluster.targets.values() for end in target.ends.values() if not end.is_dead]:
        assert end.num_releases == 1
        assert not end.holds_blocks


def _check_world(seed: int) -> None:
    """A world with trouble settles: every request that was not cancelled is done, and nothing is left."""
    world, cluster = _begin(seed)
    _make_trouble(world, cluster)
    try:
        _settle(world, cluster)
        assert {call.outcome for call in cluster.calls.values()} <= {"done", "cancelled"}
        assert len(cluster.calls) == 8
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_worlds_with_trouble_settle_with_every_request_done_and_nothing_left(first):
    for seed in range(first, first + 100):
        _check_world(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_worlds_with_trouble_settle():
    for seed in range(1000, 4000):
        _check_world(seed)


def test_worlds_without_trouble_need_one_attempt_and_no_link_is_closed():
    for seed in range(20):
        world, cluster = _begin(seed)
        _settle(world, cluster)
        assert {(call.outcome, call.epoch) for call in cluster.calls.values()} == {("done", 1)}


def test_the_same_seed_is_the_same_world():
    stories = []
    for _ in range(2):
        world, cluster = _begin(7)
        _make_trouble(world, cluster)
        _settle(world, cluster)
        stories.append([(call.request_id, call.epoch, call.target, call.outcome) for call in cluster.calls.values()])
    assert stories[0] == stories[1]
