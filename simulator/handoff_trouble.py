"""Worlds of handoffs in which everything fails for a while, drawn from a seed, and what must hold when they settle.

Knows what may befall workers and their network; the handoffs themselves are the real ones.
"""

from collections.abc import Callable
from functools import partial

from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer.handoff import Limits
from twinpool.simulator.handoff_cluster import Cluster
from twinpool.simulator.handoff_deaths import kill_source, kill_target, start_source
from twinpool.simulator.world import Faults, World

LIMITS = Limits(lease_s=4, park_s=3, announce_s=3, commit_s=2, verify_s=1.5, stop_s=1, joined_bytes=0)
POOL_BLOCKS = {"d1": 9, "d2": 8}  # the longest request takes 8: nearly everything waits for somebody
NUM_REQUESTS = 8
TROUBLE_S, END_S = 6.0, 240.0
DOWN_S = 1.0  # at most, until a worker that died is started again


def begin(seed: int, num_requests: int = NUM_REQUESTS) -> tuple[World, Cluster]:
    """A world whose clients call within three seconds."""
    world = World(seed)
    cluster = Cluster(world, LIMITS, POOL_BLOCKS)
    for number in range(num_requests):
        num_tokens = world.random.randint(1, 32)
        world.at(world.random.uniform(0, 3), partial(cluster.submit, f"r{number}", num_tokens))
    return world, cluster


def make_trouble(world: World, cluster: Cluster) -> list[str]:
    """Draw what goes wrong before ``TROUBLE_S``; returns it, in words."""
    draw = world.random
    rates = [draw.choice([0.0, 0.0, 0.03, 0.15]) for _ in range(3)]
    cluster.network.faults = Faults(0.0001, draw.choice([0.002, 0.5]), *rates)
    cluster.corrupt = draw.choice([0.0, 0.0, 0.1])
    told = [f"{cluster.network.faults}, {cluster.corrupt:.0%} of groups damaged"]
    mishaps: dict[str, tuple[int, Callable[[], None]]] = {
        "a link breaks": (4, lambda: cluster.links[draw.choice(["d1", "d2"])].close()),
        "a client leaves": (2, lambda: cluster.cancel(draw.choice(list(cluster.calls))) if cluster.calls else None),
        "parked KV is given up": (3, lambda: demote(cluster)),
        "two workers are parted": (1, lambda: cluster.network.part("p", draw.choice(["d1", "d2"]))),
        "two workers meet again": (2, lambda: cluster.network.mend("p", draw.choice(["d1", "d2"]))),
        "a target dies": (2, lambda: _restart_target(world, cluster, draw.choice(["d1", "d2"]))),
        "the source dies": (1, lambda: _restart_source(world, cluster)),
    }
    weights = [weight for weight, _ in mishaps.values()]
    for name in draw.choices(list(mishaps), weights=weights, k=draw.randint(0, 8)):
        when = draw.uniform(0, TROUBLE_S)
        told.append(f"at {when:.3f} s {name}")
        world.at(when, mishaps[name][1])
    world.at(TROUBLE_S, lambda: end_trouble(cluster))
    return told


def demote(cluster: Cluster) -> None:
    """The source's engine wants the room of some KV that waits."""
    ends = [end for ends in cluster.sources.values() for end in ends if end.machine.is_waiting_for_room]
    if ends:
        cluster.world.random.choice(ends).tell(ev.Demote("room for others"))


def _restart_target(world: World, cluster: Cluster, name: str) -> None:
    if cluster.targets[name].is_alive:
        kill_target(cluster, name)
        world.after(world.random.uniform(0.001, DOWN_S), lambda: cluster.start_target(name))


def _restart_source(world: World, cluster: Cluster) -> None:
    if cluster.is_source_alive:
        kill_source(cluster)
        world.after(world.random.uniform(0.001, DOWN_S), lambda: start_source(cluster))


def end_trouble(cluster: Cluster) -> None:
    """From now on nothing fails; workers that are down come back."""
    cluster.network.faults, cluster.corrupt = Faults(), 0.0
    for name in cluster.targets:
        cluster.network.mend("p", name)


def unsettled(cluster: Cluster) -> list[str]:
    """What is left to happen, in words."""
    left = [f"{call.request_id} has no outcome" for call in cluster.calls.values() if not call.outcome]
    for ends in cluster.sources.values():
        left += [f"source of {end.machine.request_id} {end.machine.phase}" for end in ends if not end.machine.is_over]
    for target in cluster.targets.values():
        left += [f"{target.name} {end.machine.request_id} {end.machine.phase}" for end in target.live_ends()]
        if target.is_alive and target.free_blocks != POOL_BLOCKS[target.name]:
            left.append(f"{target.name} has {target.free_blocks} free blocks")
    return left


def settle(world: World, cluster: Cluster) -> None:
    """Let the world run until nothing is left to happen.

    Raises:
        AssertionError: something is left for ever, or was released twice, or never.
    """
    world.run(until=TROUBLE_S + DOWN_S)
    while unsettled(cluster) and world.now < END_S:
        world.run(until=world.now + 5)
    assert not unsettled(cluster), unsettled(cluster)
    targets = [end for target in cluster.targets.values() for end in target.ends.values() if not end.is_dead]
    for end in [*(end for ends in cluster.sources.values() for end in ends), *targets]:
        assert (end.num_releases, end.holds_blocks) == (1, False), "not released exactly once"


def check_world(seed: int) -> tuple[Cluster, list[str]]:
    """A world with trouble settles: every request that was not cancelled is done, and nothing is left.

    Returns the cluster at rest, and what befell it, in words.

    Raises:
        AssertionError and what the handoffs raise: a rule does not hold; notes say the seed, and how to see it again.
    """
    told: list[str] = []
    try:
        world, cluster = begin(seed)
        told = make_trouble(world, cluster)
        settle(world, cluster)
        assert len(cluster.calls) == NUM_REQUESTS, "some client never called"
        assert {call.outcome for call in cluster.calls.values()} <= {"done", "cancelled"}, "a request was lost"
    except Exception as error:
        error.add_note(f"seed {seed}; see it again with: .venv/bin/python scripts/replay_handoffs {seed}")
        for line in told:
            error.add_note(line)
        raise
    return cluster, told
