"""One simulated worker among fakes: what it tells, and when."""

from itertools import pairwise

import pytest

from twinpool.core.messages import FailureKind, Goal, Request, Role
from twinpool.core.sampling import SamplingParams
from twinpool.router.views import WorkerLoad
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.flows import Card
from twinpool.simulator.news import News
from twinpool.simulator.observer import Observer, Steps
from twinpool.simulator.scenario import Fault, FaultKind, Scenario, SimulatedWorker
from twinpool.simulator.step_run import MOST_STEPS
from twinpool.simulator.worker import WorkerProcess
from twinpool.simulator.world import World

from .builders import kind, scenario

MESSAGE_S = 1e-3


class Cluster(Observer):
    """Two workers, source (0) and target (1), what gateways are told, and the workers' steps."""

    def __init__(self, **more: object) -> None:
        self.world = World(0)
        self.told: list[tuple[float, int, News]] = []
        self.steps: list[Steps] = []
        self.processes = [self._make(place, scenario(message_s=MESSAGE_S, **more)) for place in (0, 1)]

    def _make(self, place: int, settings: Scenario) -> WorkerProcess:
        worker = SimulatedWorker(f"w{place}", Role.MIXED, kind(kv_token_bytes=1000))
        return WorkerProcess(self.world, place, worker, settings, self, Card(1e9), self)

    def tell(self, place: int, news: News) -> None:
        self.told.append((self.world.now, place, news))

    def stepped(self, steps: Steps) -> None:
        self.steps.append(steps)

    def peer(self, place: int) -> WorkerProcess:
        return self.processes[place]

    def load(self, place: int) -> WorkerLoad:
        """The last that a worker told."""
        return next(news.load for _, who, news in reversed(self.told) if who == place and news.load is not None)

    def failures(self, place: int) -> list[tuple[Attempt, FailureKind]]:
        return [failure for _, who, news in self.told if who == place for failure in news.failures]

    def said(self, place: int) -> list[tuple[Attempt, int]]:
        return [said for _, who, news in self.told if who == place for said in news.said]


def attempt(name: str = "r", output: int = 5, epoch: int = 1, prompt: int = 32) -> Attempt:
    request = Request(name, epoch, (0,) * prompt, prompt, SamplingParams(max_tokens=output), Goal(1, 1))
    return Attempt(request, 0, 0, 0.0, output, (), 0)


def test_a_handoff_passes_through_both_and_leaves_nothing():
    cluster, one = Cluster(), attempt()
    source, target = cluster.processes
    target.reserve(one, 0)
    source.prefill(one, 1, None)
    assert (source.num_attempts, target.num_attempts) == (1, 1)
    cluster.world.run()
    assert (source.num_attempts, target.num_attempts) == (0, 0)
    assert cluster.said(1) == [(one, 5)]
    assert [first.attempt for _, _, news in cluster.told for first in news.firsts] == [one]
    assert cluster.load(0).free_blocks == cluster.load(1).free_blocks == 100


def test_a_reservation_is_in_the_load_from_its_order_to_its_end_and_once():
    cluster, waits, other = Cluster(), attempt("waits", output=50), attempt("other")
    target = cluster.processes[1]
    target.reserve(waits, 0)
    cluster.world.run()
    assert cluster.told == []  # the gateway that sent the order counts it itself
    target.prefill(other, None, None)  # a step to speak after
    cluster.world.run()
    assert cluster.load(1).reservations == 1
    assert cluster.load(1).reserved_blocks == -(-(32 + 50 - 1) // 16)
    target.started(waits)  # the engine counts it now
    assert (cluster.load(1).reservations, cluster.load(1).running) == (0, 0)
    assert cluster.load(1).free_blocks == 98  # its prompt's, granted
    target.cancel(0, "waits")
    cluster.world.run()
    assert (cluster.load(1).free_blocks, cluster.load(1).reserved_blocks) == (100, 0)


def test_versions_grow_with_each_change_of_the_load():
    cluster = Cluster()
    for name in ("a", "b"):
        cluster.processes[0].prefill(attempt(name), None, None)
    cluster.world.run()
    versions = [news.load.version for _, _, news in cluster.told if news.load is not None]
    assert versions == list(range(1, len(versions) + 1))


def test_loads_that_did_not_change_are_not_told_again():
    cluster = Cluster()
    cluster.processes[0].cancel(0, "nobody")
    cluster.processes[0].prefill(attempt(), None, None)
    cluster.world.run()
    loads = [news.load for _, _, news in cluster.told if news.load is not None]
    assert all(before != after for before, after in pairwise(loads))


def test_a_dead_worker_has_told_what_it_said_and_hears_no_more():
    cluster, one = Cluster(), attempt(output=90)
    worker = cluster.processes[0]
    worker.prefill(one, None, None)
    cluster.world.run(0.1)
    running_for_s = 0.1 - next(at_s for at_s, _, news in cluster.told if news.firsts)
    worker.kill()
    num_said = cluster.said(0)[-1][1]
    steps_s = [worker._kind.truth.decode_seconds(33.0, 1, steps) for steps in (num_said - 1, num_said)]
    assert steps_s[0] <= running_for_s < steps_s[1]
    cluster.told.clear()
    worker.prefill(attempt("late"), None, None)
    worker.reserve(attempt("later"), 1)
    worker.cancel(0, "r")
    cluster.world.run()
    assert cluster.told == []


def test_what_was_expected_of_a_lost_source_is_dropped_and_what_was_for_a_lost_target_is_parked():
    cluster = Cluster()
    source, target = cluster.processes
    coming, leaving = attempt("coming", 5), attempt("leaving", 5)
    target.reserve(coming, 0)
    source.peer_lost(1)  # nothing is for it
    target.peer_lost(0)
    assert target.num_attempts == 0
    source.prefill(leaving, 1, None)  # the target never reserved, so it never grants
    cluster.world.run()
    assert cluster.load(0).parked_blocks == 2
    source.peer_lost(1)
    cluster.world.run()
    assert cluster.failures(0) == [(leaving, FailureKind.TRANSFER_FAILED)]
    assert cluster.load(0).parked_blocks == 2


def test_parked_kv_goes_to_another_target_without_being_computed_again():
    cluster = Cluster()
    source, target = cluster.processes
    old, new = attempt("r", 5), attempt("r", 5, epoch=2)
    source.prefill(old, 1, None)
    cluster.world.run()
    num_firsts = sum(len(news.firsts) for _, _, news in cluster.told)
    target.reserve(new, 0)
    source.prefill(new, 1, old)
    cluster.world.run()
    assert cluster.said(1) == [(new, 5)]
    assert sum(len(news.firsts) for _, _, news in cluster.told) == num_firsts == 1
    assert (source.num_attempts, target.num_attempts) == (0, 0)
    assert cluster.load(0).free_blocks == 100


def test_a_handoff_that_is_sent_again_counts_from_its_first_token():
    cluster, old, new = Cluster(), attempt(), attempt(epoch=2)
    source, target = cluster.processes
    source.prefill(old, 1, None)
    cluster.world.run(until=2.0)
    (sampled_s,) = [at_s for at_s, _, news in cluster.told if news.firsts]
    target.reserve(new, 0)
    source.prefill(new, 1, old)
    cluster.world.run()
    (arrival,) = [arrival for _, _, news in cluster.told for arrival in news.arrivals]
    assert arrival.handoff_s == pytest.approx(arrival.transfer.ended_s - sampled_s)
    assert arrival.transfer.started_s > 2.0
    assert 0 < arrival.transfer.exposed_s < 0.1  # no byte was on the wire before


def test_after_an_order_two_loads_are_told_step_by_step():
    cluster = Cluster()
    target = cluster.processes[1]
    target.prefill(attempt("running", output=150), None, None)
    cluster.world.run(until=0.06)
    num_told = len(cluster.steps)
    target.reserve(attempt("coming"), 0)
    cluster.world.run(until=0.4)
    under_way, second, third, *_ = [steps.num_steps for steps in cluster.steps[num_told:]]
    assert under_way < MOST_STEPS
    assert (second, third) == (1, MOST_STEPS)


def test_parked_kv_that_is_gone_is_told_as_such():
    cluster = Cluster()
    source, _ = cluster.processes
    new = attempt("r", 5, epoch=2)
    source.prefill(new, 1, attempt("r", 5))
    cluster.world.run()
    assert cluster.failures(0) == [(new, FailureKind.PREEMPTED)]
    assert source.num_attempts == 0


def test_gateways_hear_of_the_first_token_that_a_target_says_where_workers_may_be_lost():
    """From then on the source is not needed; without faults nobody asks."""
    for faults in ((), (Fault(FaultKind.SLOW, "prefill-0", 1e9),)):
        cluster, one = Cluster(faults=faults), attempt(output=50)
        source, target = cluster.processes
        target.reserve(one, 0)
        source.prefill(one, 1, None)
        cluster.world.run()
        assert cluster.said(1) == ([(one, 2)] if faults else []) + [(one, 50)]
