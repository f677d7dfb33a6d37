"""A whole simulated cluster: gateways, workers and network cards in one world, with a trace running through it.

The policies are those of the live cluster, imported; this only carries messages and keeps time.
"""

import math
from collections.abc import Sequence
from itertools import count

from twinpool.core.errors import SpecError
from twinpool.router.views import WorkerState, WorkerView
from twinpool.simulator.caretaker import Caretaker
from twinpool.simulator.flows import Card
from twinpool.simulator.gateway import SimulatedGateway
from twinpool.simulator.news import News
from twinpool.simulator.observer import Gauge, Observer, Steps, Transfer
from twinpool.simulator.outcome import Outcome
from twinpool.simulator.scenario import Scenario
from twinpool.simulator.trace import Trace, TraceRequest
from twinpool.simulator.worker import WorkerProcess
from twinpool.simulator.world import World

GAUGE_S = 1.0


def simulate(
    scenario: Scenario, trace: Trace, observers: Sequence[Observer] = (), until_s: float = math.inf
) -> "SimulatedCluster":
    """Run a trace to its end, or to ``until_s``; what still runs then is told as cut. Same arguments, same events.

    Returns the cluster as it stood at the end, for those who check it.

    Raises:
        SpecError: the trace asks for what the scenario does not have.
    """
    cluster = SimulatedCluster(scenario, observers)
    cluster.run(trace, until_s)
    return cluster


class _Fan(Observer):
    """Tells several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def offered(self, index: int, at_s: float) -> None:
        for observer in self._observers:
            observer.offered(index, at_s)

    def stepped(self, steps: Steps) -> None:
        for observer in self._observers:
            observer.stepped(steps)

    def transferred(self, transfer: Transfer) -> None:
        for observer in self._observers:
            observer.transferred(transfer)

    def gauged(self, gauge: Gauge) -> None:
        for observer in self._observers:
            observer.gauged(gauge)

    def happened(self, at_s: float, worker: int, what: str) -> None:
        for observer in self._observers:
            observer.happened(at_s, worker, what)

    def ended(self, outcome: Outcome) -> None:
        for observer in self._observers:
            observer.ended(outcome)


class SimulatedCluster:
    """Owns the world and everything in it."""

    def __init__(self, scenario: Scenario, observers: Sequence[Observer] = ()) -> None:
        self.world = World(scenario.seed)
        self._scenario = scenario
        self._message_s = scenario.message_s
        self._observer = observers[0] if len(observers) == 1 else _Fan(observers)
        self._places = {worker.worker_id: place for place, worker in enumerate(scenario.workers)}
        assert len(self._places) == len(scenario.workers), "two workers of one id"
        cards: dict[str, Card] = {}
        self._cards = [
            cards.setdefault(worker.node or worker.worker_id, Card(worker.kind.nic_bytes_per_s))
            for worker in scenario.workers
        ]
        self.gateways = [
            SimulatedGateway(self.world, number, scenario, self._places, self)
            for number in range(scenario.num_gateways)
        ]
        self._starts = [0] * len(scenario.workers)
        self.processes = [self._make(place) for place in range(len(scenario.workers))]
        for place in range(len(scenario.workers)):
            self._join(place)
        Caretaker(self.world, scenario, self)
        self.num_open = 0
        self._is_fed = False
        self._idle_since_s: float | None = None  # no gauge is due: there is no request

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, trace: Trace, until_s: float) -> None:
        """See `simulate`."""
        requests = iter(trace)
        numbers = count()

        def feed(offered: TraceRequest) -> None:
            index = next(numbers)
            self._check(index, offered)
            if self._idle_since_s is not None:
                self._gauge_idle_time(self._idle_since_s)
            self.num_open += 1
            self._observer.offered(index, offered.arrival_s)
            self.gateways[index % len(self.gateways)].submit(index, offered)
            feed_next()

        def feed_next() -> None:
            offered = next(requests, None)
            if offered is None:
                self._is_fed = True
            else:
                self.world.at(offered.arrival_s, lambda: feed(offered))

        feed_next()
        self.world.after(GAUGE_S, self._gauge)
        self.world.run(until_s, max_events=None)
        for gateway in self.gateways:
            gateway.cut()

    def _check(self, index: int, offered: TraceRequest) -> None:
        """SpecError if the scenario lacks what a request names."""
        scenario = self._scenario
        if offered.goal_class not in scenario.goals:
            known = ", ".join(scenario.goals)
            raise SpecError(f"goals: request {index} of the trace is of class {offered.goal_class}; there are {known}")
        if scenario.shares_prefixes and offered.prefix_hashes and offered.hash_tokens != scenario.hash_tokens:
            raise SpecError(
                f"request {index} of the trace names pieces of {offered.hash_tokens} tokens, where "
                f"{scenario.hash_tokens} were expected"
            )

    def _gauge(self) -> None:
        if not self.num_open:
            self._idle_since_s = self.world.now
            return
        processes = [process for process in self.processes if not process.is_dead]
        self._observer.gauged(
            Gauge(
                self.world.now,
                sum(gateway.num_held for gateway in self.gateways),
                sum(gateway.num_in_flight for gateway in self.gateways),
                sum(process.engine.prompts.waiting_tokens for process in processes),
                sum(process.engine.pool.num_free for process in processes),
            )
        )
        self.world.after(GAUGE_S, self._gauge)

    def _gauge_idle_time(self, since_s: float) -> None:
        """One gauge stands for all that were due while there was no request, so that rare requests cost no more."""
        num = math.floor((self.world.now - since_s) / GAUGE_S) + 1
        free_blocks = sum(process.engine.pool.num_free for process in self.processes if not process.is_dead)
        self._observer.gauged(Gauge(self.world.now, 0, 0, 0, free_blocks, num))
        self._idle_since_s = None
        self.world.at(since_s + num * GAUGE_S, self._gauge)

    def ended(self, outcome: Outcome) -> None:
        """A gateway tells that a request has ended."""
        self.num_open -= 1
        self._observer.ended(outcome)

    # --- workers (worker.Neighbours, gateway.Cluster) -------------------------------------------------------------

    def peer(self, place: int) -> WorkerProcess:
        """The process that stands there now."""
        return self.processes[place]

    def tell(self, place: int, news: News) -> None:
        """Carry a worker's message to every gateway."""
        worker_id, process = self._scenario.workers[place].worker_id, self.processes[place]

        def deliver() -> None:
            if news.load is not None and self.processes[place] is not process:
                news.load = news.cache = None
            for gateway in self.gateways:
                gateway.heard(worker_id, news)

        self.world.send(self._message_s, deliver)

    def _make(self, place: int) -> WorkerProcess:
        worker, start = self._scenario.workers[place], self._starts[place]
        return WorkerProcess(self.world, place, worker, self._scenario, self, self._cards[place], self._observer, start)

    def _join(self, place: int) -> None:
        worker = self._scenario.workers[place]
        view = WorkerView(
            worker_id=worker.worker_id,
            incarnation=str(self._starts[place]),
            role=worker.role,
            total_blocks=worker.kind.num_blocks,
            block_tokens=worker.kind.block_tokens,
            kind=worker.kind.name,
        )
        for gateway in self.gateways:
            gateway.join(view)

    # --- what befalls workers (caretaker.Processes) ---------------------------------------------------------------

    def crash(self, place: int) -> None:
        """The process dies; all who have a connection to it notice at once."""
        process = self.processes[place]
        process.kill()
        self._observer.happened(self.world.now, place, "crashed")

        def noticed() -> None:
            for gateway in self.gateways:
                gateway.lost(self._scenario.workers[place].worker_id)
            for other in self.processes:
                other.peer_lost(place)

        self.world.send(self._message_s, noticed)

    def start(self, place: int, *, is_draining: bool) -> None:
        """A new process says hello."""
        self._starts[place] += 1
        self.processes[place] = self._make(place)
        self._observer.happened(self.world.now, place, "started")
        self._join(place)
        for gateway in self.gateways:
            if is_draining:
                gateway.table.drain(self._scenario.workers[place].worker_id)
            else:
                gateway.joined()

    def drain(self, place: int, *, on: bool) -> None:
        """Send it nothing new, or do again. One that is down stays as it is."""
        worker_id = self._scenario.workers[place].worker_id
        self._observer.happened(self.world.now, place, "draining" if on else "ready")
        for gateway in self.gateways:
            state = gateway.table.worker(worker_id).state
            if on and state is WorkerState.READY:
                gateway.table.drain(worker_id)
            elif not on and state is WorkerState.DRAINING:
                gateway.table.resume(worker_id)
                gateway.joined()

    def slow(self, place: int, factor: float) -> None:
        """Its steps take so many times as long from the next one on."""
        self._observer.happened(self.world.now, place, f"slow {factor:g}")
        self.processes[place].engine.slowness = factor
        self.processes[place].engine.post(_nothing)

    def check(self) -> None:
        """AssertionError unless every block of every worker is accounted for, and every count right."""
        for process in self.processes:
            if not process.is_dead:
                engine = process.engine
                engine.pool.check(engine.rows.holdings() + engine.prompts.holdings())
                engine.rows.check()
                engine.prompts.check()


def _nothing() -> None:
    """Cuts a run of steps short, so that what follows is decided anew."""
