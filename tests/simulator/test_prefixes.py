"""Simulated gateways know of the workers' caches what a message's delay allows, and place by it."""

from collections import Counter
from dataclasses import replace

import pytest

from twinpool.core.messages import Goal, Request, Role
from twinpool.core.sampling import SamplingParams
from twinpool.router.estimate import LatencyModel, LinearForm
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.attempt import Attempt, Destination
from twinpool.simulator.cluster import SimulatedCluster, simulate
from twinpool.simulator.observer import Observer
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.pool import CountedPool, Holding, Name
from twinpool.simulator.prefixes import CacheTeller, CacheWord, KnownPrefixes, prompt_names
from twinpool.simulator.prompt_queue import Prompt, PromptQueue
from twinpool.simulator.scenario import (
    Fault,
    FaultKind,
    GoalClass,
    PrefixCache,
    Scenario,
    SimulatedWorker,
    WorkerKind,
)
from twinpool.simulator.trace import TraceRequest

FORM = LinearForm(10e-3, 100e-6, 0.0, 10e-3, 1e-7, 1e-5)
KIND = WorkerKind("k", FORM, 1024, 400, 16)
PIECE = 64


def request(at_s: float, prefix: int, own: int, *, pieces: int = 10, tenant: str = "") -> TraceRequest:
    """Ten pieces, of which all but two are the prefix's."""
    hashes = (*(1000 * prefix + place for place in range(pieces - 2)), 10**6 + 2 * own, 10**6 + 2 * own + 1)
    return TraceRequest(at_s, pieces * PIECE + 5, 20, tenant=tenant, prefix_hashes=hashes, hash_tokens=PIECE)


def scenario(policy: Policy, roles: tuple[Role, ...] = (Role.MIXED,) * 4, **knobs: object) -> Scenario:
    placement = PlacementSettings(policy, Disaggregate.WHEN_CHEAPER, latencies={"k": LatencyModel(FORM)})
    workers = tuple(SimulatedWorker(f"w{number}", role, KIND) for number, role in enumerate(roles))
    values = {"placement": placement, "prefix_cache": PrefixCache.HASHES, "hash_tokens": PIECE} | knobs
    return Scenario(workers, {"default": GoalClass(Goal(1.0, 0.1))}, **values)  # type: ignore[arg-type]


class Ended(Observer):
    """Outcomes, kept."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    @property
    def cached_tokens(self) -> int:
        return sum(outcome.cached_tokens for outcome in self.outcomes)


def run(of: Scenario, trace: list[TraceRequest]) -> tuple[Ended, SimulatedCluster]:
    ended = Ended()
    cluster = simulate(of, trace, [ended])
    cluster.check()
    assert all(outcome.ending is Ending.COMPLETED for outcome in ended.outcomes)
    return ended, cluster


def many(num: int, rate: float = 20.0) -> list[TraceRequest]:
    """Of 23 prefixes, which do not fit into one worker together, mixed up."""
    return [request(number / rate, number * number % 101 % 23, number) for number in range(num)]


def known(cluster: SimulatedCluster, gateway: int, worker: int) -> set[Name]:
    """What a gateway believes that a worker has cached."""
    prefixes = cluster.gateways[gateway]._prefixes
    assert prefixes is not None
    holders, column = prefixes.index._holders, prefixes.index._sources[f"w{worker}"].column
    return {key for key, mask in [*holders._young.items(), *holders._old.items()] if mask >> column & 1}  # type: ignore[misc]


def truly_cached(cluster: SimulatedCluster, worker: int) -> set[Name]:
    return set(cluster.processes[worker].engine.pool._references)


@pytest.mark.parametrize("roles", [(Role.MIXED,) * 4, (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)])
@pytest.mark.parametrize("policy", [Policy.PREFIX_AWARE, Policy.SLO])
def test_when_all_is_quiet_every_gateway_knows_exactly_what_is_cached(policy: Policy, roles: tuple[Role, ...]) -> None:
    _, cluster = run(scenario(policy, roles, num_gateways=2), many(150))
    for worker in range(len(roles)):
        assert truly_cached(cluster, worker)
        for gateway in range(2):
            assert known(cluster, gateway, worker) == truly_cached(cluster, worker)


def test_pools_evicted_while_that_ran() -> None:
    _, cluster = run(scenario(Policy.PREFIX_AWARE), many(150))
    num_distinct = len({name for offered in many(150) for name in prompt_names(offered)})
    assert sum(len(truly_cached(cluster, worker)) for worker in range(4)) < num_distinct


def test_a_worker_that_crashes_is_known_to_be_empty_and_to_fill_again() -> None:
    faults = (Fault(FaultKind.CRASH, "w0", 2.0),)
    _, cluster = run(scenario(Policy.PREFIX_AWARE, start_s=0.5, faults=faults), many(150))
    assert known(cluster, 0, 0) == truly_cached(cluster, 0)


@pytest.mark.parametrize("policy", [Policy.PREFIX_AWARE, Policy.SLO])
def test_more_of_the_prompts_is_found_cached_than_without_looking(policy: Policy) -> None:
    blind, _ = run(scenario(Policy.LEAST_LOADED), many(150))
    seeing, _ = run(scenario(policy), many(150))
    assert seeing.cached_tokens > 1.2 * blind.cached_tokens


def test_tenants_find_nothing_of_each_others() -> None:
    trace = [request(number, 1, number, tenant=f"t{number}") for number in range(5)]
    ended, _ = run(scenario(Policy.PREFIX_AWARE), trace)
    assert ended.cached_tokens == 0


def test_one_hot_prefix_comes_to_be_held_by_several_workers() -> None:
    trace = [request(0.5 + number / 60, 1, number) for number in range(120)]
    ended, cluster = run(scenario(Policy.PREFIX_AWARE), [request(0.0, 1, 999), *trace])
    holders = [worker for worker in range(4) if ("", 1000) in truly_cached(cluster, worker)]
    assert len(holders) > 1
    served = Counter(outcome.prefill_worker for outcome in ended.outcomes)
    assert max(served.values()) < 100


def test_old_news_sends_the_second_of_two_elsewhere() -> None:
    """They come within a message's time, so that nobody can know of the first's blocks yet."""
    trace = [request(0.0, 1, 1), request(0.001, 1, 2), request(5.0, 1, 3)]
    ended, _ = run(scenario(Policy.PREFIX_AWARE, message_s=0.05), trace)
    by_index = sorted(ended.outcomes, key=lambda outcome: outcome.index)
    assert [outcome.cached_tokens for outcome in by_index] == [0, 0, 8 * PIECE]
    assert by_index[0].prefill_worker != by_index[1].prefill_worker


@pytest.mark.parametrize(
    "knobs", [{"prefix_cache": PrefixCache.OFF}, {"placement": PlacementSettings(Policy.ROUND_ROBIN)}]
)
def test_nothing_is_noted_or_told_where_nobody_looks(knobs: dict[str, object]) -> None:
    _, cluster = run(replace(scenario(Policy.PREFIX_AWARE), **knobs), many(30))  # type: ignore[arg-type]
    assert all(gateway._prefixes is None for gateway in cluster.gateways)
    assert all(process.engine.pool._changes is None for process in cluster.processes)


def test_cached_pieces_do_not_wait_to_be_computed() -> None:
    pool, holding, names = CountedPool(100, PIECE // 16), Holding(), (("", 1), ("", 2))
    pool.take(holding, 8)
    pool.publish(holding, names)
    queue = PromptQueue(pool, 16, 50)
    asked = Request("r", 1, (0,) * (3 * PIECE), 3 * PIECE, SamplingParams(max_tokens=4), Goal(1.0, 1.0))
    queue.submit(Prompt(Attempt(asked, 0, 0, 0.0, 4, (*names, ("", 3)), PIECE), Destination.HANDOFF, 0.0))
    assert queue.waiting_tokens == PIECE
    queue.start(0, 1.0)
    assert queue.waiting_tokens == queue.prompt(0).remaining_tokens == PIECE
    queue.check()


def test_a_worker_tells_what_changed_and_counts_its_words() -> None:
    pool = CountedPool(8, 4)
    teller, holding = CacheTeller(pool), Holding()
    assert teller.take_word() is None
    pool.take(holding, 8)
    pool.publish(holding, (("t", 1), ("t", 2)))
    assert teller.take_word() == CacheWord(1, [("t", 1), ("t", 2)], [])
    pool.release(holding)
    pool.take(holding, 5)
    assert teller.take_word() == CacheWord(2, [], [("t", 2), ("t", 1)])


def test_a_prompt_is_never_cached_to_its_last_token() -> None:
    offered = TraceRequest(0.0, 2 * PIECE, 5, prefix_hashes=(7, 8), hash_tokens=PIECE)
    assert prompt_names(offered) == (("", 7), ("", 8))
    prefixes = KnownPrefixes()
    prefixes.join("w")
    assert prefixes.cached_tokens(offered, 2 * PIECE, ("w",)) is None
    prefixes.hear("w", CacheWord(1, prompt_names(offered), ()))
    found = [prefixes.cached_tokens(offered, num_tokens, ("v", "w")) for num_tokens in (2 * PIECE, 2 * PIECE + 3)]
    assert [None if each is None else each.tolist() for each in found] == [[0, PIECE], [0, 2 * PIECE]]
