"""A simulated gateway: its own view of the workers, queue and ledger, with router/ deciding, as in cluster/dispatch.py.

Performs what is decided and books what came of it. Knows no engine.
"""

from collections.abc import Callable
from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from twinpool.core.errors import DeadlineExceeded, InvalidRequest, NoWorkers, Overloaded, TwinpoolError
from twinpool.core.messages import FailureKind, FinishReason, Request
from twinpool.router.ledger import Ledger, Phase
from twinpool.router.mixed_pool import choose_move, may_return
from twinpool.router.recovery import Decision, GiveUp, Retarget, Retry
from twinpool.router.refusals import rejection
from twinpool.router.route import HoldReason, Reject, Route
from twinpool.router.view_table import ViewTable
from twinpool.router.views import WorkerView
from twinpool.router.waiting import Placing, WaitingRoom
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.flight import Flight, placing_of, request_of, standing_of, zeros
from twinpool.simulator.news import FirstToken, News
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.prefixes import KnownPrefixes, prompt_names
from twinpool.simulator.scenario import Scenario
from twinpool.simulator.trace import TraceRequest
from twinpool.simulator.worker import WorkerProcess
from twinpool.simulator.world import Timer, World

_REFUSALS = (Overloaded, InvalidRequest, NoWorkers, DeadlineExceeded)
_TICK_S = 1.0


class Cluster(Protocol):
    """What a gateway reaches."""

    def peer(self, place: int) -> WorkerProcess: ...
    def ended(self, outcome: Outcome) -> None: ...


class SimulatedGateway:
    """Owns the requests that came to it. ``places`` are the workers' places by id."""

    def __init__(self, world: World, number: int, scenario: Scenario, places: dict[str, int], cluster: Cluster) -> None:
        self.table = ViewTable()
        self._world = world
        self._number = number
        self._scenario = scenario
        self._message_s = scenario.message_s
        self._places = places
        self._cluster = cluster
        self._ledger = Ledger(scenario.max_attempts)
        self._prefixes = KnownPrefixes() if scenario.tells_caches else None
        knows_caches = self._prefixes is not None or not scenario.shares_prefixes  # it knows that there are none
        cached_tokens = self._cached_tokens if knows_caches else None
        self._waiting = WaitingRoom(self.table, scenario.placement, scenario.admission, cached_tokens)
        self._flights: dict[str, Flight] = {}
        self._tick: Timer | None = None
        self._lent: set[str] = set()  # workers, to the mixed pool
        self._full: tuple[int, HoldReason | None] = (-1, None)  # the table's version and for what no worker was to lend

    @property
    def num_held(self) -> int:
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        return len(self._flights) - len(self._waiting)

    # --- requests -------------------------------------------------------------------------------------------------

    def submit(self, index: int, offered: TraceRequest) -> None:
        """A request has come."""
        now = self._world.now
        goals = self._scenario.goals[offered.goal_class]
        request = request_of(index, offered, goals)
        flight = self._flights[request.request_id] = Flight(index, offered, goals, standing_of(offered, goals))
        try:
            self._waiting.admit([placing_of(request, flight)], (), now)
        except TwinpoolError as error:
            del self._flights[request.request_id]
            self._tell_end(flight, error, 0)
            return
        self._ledger.open(request, now)
        self._wait(request)
        self._place_waiting()

    def _wait(self, request: Request, avoid: frozenset[str] = frozenset(), parked_on: str | None = None) -> None:
        flight, now = self._flights[request.request_id], self._world.now
        self._waiting.put(placing_of(request, flight, avoid, parked_on), now)

    def _place_waiting(self) -> None:
        if not len(self._waiting):
            return
        for placing in self._waiting.turns(self._world.now):
            self._place(placing)
        if len(self._waiting):
            self._set_tick()

    def _place(self, placing: Placing) -> None:
        match self._waiting.place(placing, self._world.now):
            case Route() as route:
                self._dispatch(placing, route)
            case Reject(reason):
                self._end(placing.request.request_id, rejection(reason))
            case None:
                if self._overflow(placing):
                    self._place(placing)
            case other:
                assert_never(other)

    def _overflow(self, placing: Placing) -> bool:
        """Whether a worker could be lent to the mixed pool for it: then it is asked again."""
        settings = self._scenario.placement
        if not settings.mixed_pool:
            return False
        asked = (self.table.version, self._waiting.reason(placing))
        if asked == self._full:
            return False
        move = choose_move(self.table.snapshot(self._world.now), asked[1])
        if move is None:
            self._full = asked
            return False
        self.table.set_role(move.worker_id, move.role)
        self._lent.add(move.worker_id)
        return True

    def _dispatch(self, placing: Placing, route: Route) -> None:
        now = self._world.now
        request = placing.request
        flight = self._flights[request.request_id]
        self._ledger.dispatched(request.request_id, route)
        attempt = self._attempt(flight, request)
        source = self._places[route.prefill]
        target = self._places[route.decode] if route.is_disaggregated and route.decode is not None else None
        flight.attempt, parked, flight.parked = attempt, flight.parked, None
        flight.placed_s = now if flight.placed_s is None else flight.placed_s
        flight.prefill_worker, flight.decode_worker = source, source if target is None else target
        worker = self._cluster.peer(source)
        blocks = -(-request.peak_tokens // self._block_tokens(source))
        if target is not None:
            peer = self._cluster.peer(target)
            self._send(lambda: peer.reserve(attempt, source))
            self.table.add_inflight(self._id(target), request.request_id, reserve_blocks=blocks)
        self._send(lambda: worker.prefill(attempt, target, parked))
        self.table.add_inflight(
            route.prefill,
            request.request_id,
            prefill_tokens=0 if parked else len(request.token_ids) - route.cached_tokens,
            reserve_blocks=blocks if route.decode == route.prefill else 0,
        )

    def _attempt(self, flight: Flight, request: Request) -> Attempt:
        offered = flight.offered
        names = prompt_names(offered) if self._scenario.shares_prefixes else ()
        return Attempt(
            request, flight.index, self._number, offered.arrival_s, offered.output_tokens, names, offered.hash_tokens
        )

    def _block_tokens(self, place: int) -> int:
        return self._scenario.workers[place].kind.block_tokens

    def _id(self, place: int) -> str:
        return self._scenario.workers[place].worker_id

    def _send(self, deliver: Callable[[], None]) -> None:
        self._world.send(self._message_s, deliver)

    def _release(self, request_id: str, workers: tuple[str, ...]) -> None:
        for worker_id in workers:
            worker = self._cluster.peer(self._places[worker_id])
            self._send(lambda worker=worker: worker.cancel(self._number, request_id))  # type: ignore[misc]
            self.table.settle(worker_id, request_id)

    # --- workers --------------------------------------------------------------------------------------------------

    def join(self, view: WorkerView) -> None:
        """A worker said hello."""
        self.table.join(view, self._world.now)
        if self._prefixes is not None:
            self._prefixes.join(view.worker_id)

    def joined(self) -> None:
        """Workers that said hello, or take requests again, are in ``table``."""
        self._place_waiting()

    def _cached_tokens(self, request: Request, worker_ids: tuple[str, ...]) -> NDArray[np.int64] | None:
        if self._prefixes is None:
            return None
        offered = self._flights[request.request_id].offered
        return self._prefixes.cached_tokens(offered, len(request.token_ids), worker_ids)

    def lost(self, worker_id: str) -> None:
        """A worker is gone."""
        self.table.lost(worker_id)
        if self._prefixes is not None:
            self._prefixes.lost(worker_id)
        for decision in self._ledger.worker_lost(worker_id, self._world.now):
            self._follow(decision)
        self._place_waiting()

    def heard(self, worker_id: str, news: News) -> None:
        """A worker's message."""
        if news.cache is not None and self._prefixes is not None:
            self._prefixes.hear(worker_id, news.cache)
        if news.load is not None:
            self.table.update(worker_id, news.load, self._world.now)
            if worker_id in self._lent and not news.load.running:  # one that decodes is busy for sure
                self._maybe_return(worker_id)
        for first in news.firsts:
            if first.attempt.gateway == self._number:
                self._take_first(first)
        for arrival in news.arrivals:
            if arrival.attempt.gateway == self._number:
                flight = self._flights.get(arrival.attempt.request.request_id)
                if flight is not None:
                    flight.arrival = arrival
        for attempt, num_said in news.said:
            if attempt.gateway == self._number:
                self._take_tokens(attempt, num_said)
        for attempt, kind in news.failures:
            if attempt.gateway == self._number:
                self._take_failure(worker_id, attempt, kind)
        self._place_waiting()

    def _maybe_return(self, worker_id: str) -> None:
        """A worker that was lent to the mixed pool goes home when it has nothing to do."""
        home = self._scenario.workers[self._places[worker_id]].role
        if may_return(self.table.worker(worker_id), home):
            self.table.set_role(worker_id, home)
            self._lent.discard(worker_id)

    def _take_first(self, first: FirstToken) -> None:
        request = first.attempt.request
        accepted = self._ledger.delta(request.request_id, request.epoch, first.attempt.first_index, (0,))
        flight = self._flights.get(request.request_id)
        if flight is not None and flight.first_s is None and accepted.token_ids:  # it may be of an attempt given up
            flight.first, flight.first_s = first, self._world.now
        self._waiting.generated(request.request_id, len(accepted.token_ids), self._world.now)
        if accepted.finish_reason is not None:
            self._conclude(request.request_id, accepted.release)

    def _take_tokens(self, attempt: Attempt, num_said: int) -> None:
        """All tokens after the prefill's own that an attempt said before it ended or broke off."""
        request = attempt.request
        request_id, is_over = request.request_id, num_said >= attempt.output_tokens
        finish = None
        if is_over:
            is_limit = attempt.output_tokens >= request.sampling.max_tokens
            finish = FinishReason.LENGTH if is_limit else FinishReason.STOP
        first = attempt.first_index + 1
        accepted = self._ledger.delta(request_id, request.epoch, first, zeros(max(0, num_said - first)), finish)
        self._waiting.generated(request_id, len(accepted.token_ids), self._world.now)
        if accepted.finish_reason is not None:
            self._conclude(request_id, accepted.release)

    def _conclude(self, request_id: str, release: tuple[str, ...]) -> None:
        entry = self._ledger.entry(request_id)
        self._waiting.concluded(request_id, len(entry.stream), self._world.now)
        self._release(request_id, release)
        for worker_id in entry.route.workers if entry.route is not None else ():
            self.table.settle(worker_id, request_id)
        self._close(request_id, None)

    def _take_failure(self, worker_id: str, attempt: Attempt, kind: FailureKind) -> None:
        request = attempt.request
        decision = self._ledger.failure(request.request_id, request.epoch, kind, worker_id, str(kind), self._world.now)
        if decision is not None:
            self._follow(decision)

    def _follow(self, decision: Decision) -> None:
        request_id = decision.request_id
        flight = self._flights[request_id]
        self._waiting.take(request_id, self._world.now)
        self._release(request_id, decision.release)
        match decision:
            case Retry(request, avoid):
                self._wait(request, avoid)
            case Retarget(request, parked_on, avoid):
                flight.parked = flight.attempt
                self._wait(request, avoid, parked_on)
            case GiveUp(request_id, error):
                self._close(request_id, error)
            case _:
                assert_never(decision)

    # --- ends -----------------------------------------------------------------------------------------------------

    def _set_tick(self) -> None:
        if self._tick is None:
            self._tick = self._world.after(_TICK_S, self._expire)

    def _expire(self) -> None:
        self._tick = None
        for request_id, error in self._waiting.take_expired(self._world.now):
            self._end(request_id, error)
        self._place_waiting()

    def _end(self, request_id: str, error: TwinpoolError) -> None:
        self._waiting.take(request_id, self._world.now)
        self._release(request_id, self._ledger.cancel(request_id))
        self._close(request_id, error)

    def _close(self, request_id: str, error: TwinpoolError | None) -> None:
        entry = self._ledger.entry(request_id)
        assert entry.phase is Phase.ENDED
        num_tokens, attempts = len(entry.stream), entry.request.epoch
        self._ledger.close(request_id)
        self._tell_end(self._flights.pop(request_id), error, num_tokens, attempts)

    def cut(self) -> None:
        """The run is over: so are all that still run."""
        for request_id, flight in list(self._flights.items()):
            entry = self._ledger.entry(request_id)
            del self._flights[request_id]
            outcome = flight.outcome(
                self._world.now, Ending.CUT, "the run ended", len(entry.stream), entry.request.epoch
            )
            self._cluster.ended(outcome)

    def _tell_end(self, flight: Flight, error: TwinpoolError | None, num_tokens: int, attempts: int = 1) -> None:
        if error is None:
            ending, why = Ending.COMPLETED, ""
        else:
            ending, why = Ending.REJECTED if isinstance(error, _REFUSALS) else Ending.FAILED, str(error)
        self._cluster.ended(flight.outcome(self._world.now, ending, why, num_tokens, attempts))
