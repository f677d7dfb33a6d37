"""Performs what the router decides for one gateway: places requests, sends orders, passes tokens on, tries again.

Decides nothing: placement, order of waiting, acceptance of tokens and what follows a failure are router/'s. Knows no
gRPC: orders leave through ``send``.
"""

import logging
from collections.abc import Callable, Sequence
from typing import assert_never

from twinpool.cluster.flight import Flight, Flights, Piece
from twinpool.cluster.step_news import load_of, note_timings, read_logprobs
from twinpool.core.errors import Cancelled, Internal, TwinpoolError
from twinpool.core.messages import Request, WorkerAddress
from twinpool.protos.convert import (
    address_to_proto,
    failure_kind_from_proto,
    finish_reason_from_proto,
    request_to_proto,
)
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.admission import AdmissionSettings
from twinpool.router.demand import CachedTokens
from twinpool.router.ledger import Ledger, Phase
from twinpool.router.recovery import Decision, GiveUp, Retarget, Retry
from twinpool.router.refusals import rejection
from twinpool.router.route import PlacementSettings, Reject, Route
from twinpool.router.standing import USUAL, Standing
from twinpool.router.view_table import ViewTable
from twinpool.router.waiting import Placing, WaitingRoom

log = logging.getLogger(__name__)

Send = Callable[[str, pb.GatewayMessage], None]


class Dispatcher:
    """Owns the requests of one gateway, from acceptance to the end of their stream.

    Whatever happens may make room, so each event ends with placing those that wait.
    """

    def __init__(
        self,
        placement: PlacementSettings,
        admission: AdmissionSettings,
        max_attempts: int,
        *,
        send: Send,
        clock: Callable[[], float],
        cached_tokens: CachedTokens | None = None,
    ) -> None:
        self.table = ViewTable()
        self.ledger = Ledger(max_attempts)
        self._send = send
        self._clock = clock
        self.waiting = WaitingRoom(self.table, placement, admission, cached_tokens)
        self._flights: dict[str, Flight] = {}
        self._others: dict[str, tuple[Flight, ...]] = {}  # that begin when the first of their call has a token
        self._addresses: dict[str, WorkerAddress] = {}

    @property
    def num_queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self.waiting)

    @property
    def num_open(self) -> int:
        """Requests whose client has not gone."""
        return len(self._flights)

    # --- requests -------------------------------------------------------------------------------------------------

    def submit(
        self, requests: Sequence[Request], deadline_s: float | None = None, standing: Standing = USUAL
    ) -> Flights:
        """Take the requests of one client call, one for each answer, of one prompt; `finish` must follow for each.

        The others are placed when the first has its first token, to find the prompt in that worker's prefix cache; or
        at once, when the prompt fills no block.

        Args:
            deadline_s: from now on; requests that still wait then are given up.
            standing: of all of them.

        Raises:
            Overloaded, DeadlineExceeded, InvalidRequest: they were refused at once, all of them. Nothing was started.
        """
        now = self._clock()
        deadline_at = now + (float("inf") if deadline_s is None else deadline_s)
        promised = [flight.standing for flights in self._others.values() for flight in flights]
        self.waiting.admit([Placing(one, now, deadline_at, standing=standing) for one in requests], promised, now)
        flights = Flights(requests, now, deadline_at, standing)
        first, *others = flights.of_choice
        first_id = first.request.request_id
        self._others[first_id] = tuple(others)
        self._begin(first)
        if self._fits_one_block(first.request.num_prompt_tokens):
            self._begin_others(first_id)
        self._place_waiting()
        return flights

    def _begin(self, flight: Flight) -> None:
        self._flights[flight.request.request_id] = flight
        self.ledger.open(flight.request, flight.arrived_s)
        self._wait(flight.request)

    def _begin_others(self, first_id: str) -> None:
        for flight in self._others.pop(first_id, ()):
            self._begin(flight)

    def _fits_one_block(self, num_tokens: int) -> bool:
        workers = self.table.workers()
        return bool(workers) and all(num_tokens <= worker.block_tokens for worker in workers)

    def cancel(self, request_id: str) -> bool:
        """End a request on its client's word; False when there is none of this id that is not over."""
        flight = self._flights.get(request_id)
        if flight is None or self.ledger.entry(request_id).phase is Phase.ENDED:
            return False
        self._end(request_id, Cancelled("cancelled by the client"))
        self._place_waiting()
        return True

    def finish(self, request_id: str) -> None:
        """The client wants no more of it, whatever the reason: forget the request, and stop what still runs for it.

        With the first request of a call go the others that have not begun. Idempotent.
        """
        self._others.pop(request_id, None)
        if request_id not in self.ledger:
            return
        self.waiting.take(request_id, self._clock())
        self._release(request_id, self.ledger.cancel(request_id))
        self.ledger.close(request_id)
        del self._flights[request_id]
        self._place_waiting()

    def tick(self) -> None:
        """Refuse what waited too long. Called about once a second."""
        for request_id, error in self.waiting.take_expired(self._clock()):
            self._end(request_id, error)
        self._place_waiting()

    def _end(self, request_id: str, error: TwinpoolError) -> None:
        self.waiting.take(request_id, self._clock())
        self._release(request_id, self.ledger.cancel(request_id))
        self._flights[request_id].fail(error)

    def _give_up(self, request_id: str, error: Exception) -> None:
        """A rule of ours was broken over one request: it fails, and no other."""
        self.waiting.take(request_id, self._clock())
        if request_id in self._flights:
            self._end(request_id, Internal(f"{type(error).__name__}: {error}"))

    # --- placing --------------------------------------------------------------------------------------------------

    def _wait(self, request: Request, avoid: frozenset[str] = frozenset(), parked_on: str | None = None) -> None:
        flight = self._flights[request.request_id]
        placing = Placing(request, flight.arrived_s, flight.deadline_s, avoid, parked_on, flight.standing)
        self.waiting.put(placing, self._clock())

    def _place_waiting(self) -> None:
        """Try all whose turn it is."""
        for placing in self.waiting.turns(self._clock()) if len(self.waiting) else ():
            request_id = placing.request.request_id
            try:
                self._place(placing)
            except Exception as error:  # as in `stepped`: the events of others end here too
                log.exception("placing %s failed", request_id)
                self._give_up(request_id, error)

    def _place(self, placing: Placing) -> None:
        match self.waiting.place(placing, self._clock()):
            case Route() as route:
                self._dispatch(placing, route)
            case Reject(reason):
                self._end(placing.request.request_id, rejection(reason))
            case None:
                pass  # it waits
            case other:
                assert_never(other)

    def _dispatch(self, placing: Placing, route: Route) -> None:
        now = self._clock()
        request = placing.request_at(now)
        request_id, spec = request.request_id, request_to_proto(request)
        self.ledger.dispatched(request_id, route)
        flight = self._flights[request_id]
        record = flight.record
        record.prefill_worker, record.decode_worker = route.prefill, route.decode or route.prefill
        record.placement, record.attempts = route.why, request.epoch
        blocks = -(-request.peak_tokens // self._block_tokens(route.prefill))
        order = pb.PrefillOrder(request=spec, expects_parked=placing.parked_on is not None)
        if route.is_disaggregated and route.decode is not None:
            source = address_to_proto(self._addresses[route.prefill])
            order.target.CopyFrom(address_to_proto(self._addresses[route.decode]))
            self._send(route.decode, pb.GatewayMessage(reserve=pb.ReserveOrder(request=spec, source=source)))
            self.table.add_inflight(route.decode, request_id, reserve_blocks=blocks)
        self._send(route.prefill, pb.GatewayMessage(prefill=order))
        self.table.add_inflight(
            route.prefill,
            request_id,
            prefill_tokens=0 if placing.parked_on else len(request.token_ids) - route.cached_tokens,
            reserve_blocks=blocks if route.decode == route.prefill else 0,
        )

    def _block_tokens(self, worker_id: str) -> int:
        return next(worker.block_tokens for worker in self.table.workers() if worker.worker_id == worker_id)

    def _release(self, request_id: str, workers: tuple[str, ...]) -> None:
        for worker_id in workers:
            self._send(worker_id, pb.GatewayMessage(cancel=pb.CancelOrder(request_id=request_id)))
            self.table.settle(worker_id, request_id)

    # --- workers --------------------------------------------------------------------------------------------------

    def joined(self, address: WorkerAddress) -> None:
        """A worker said hello (its row is in ``table``): requests that waited may go there."""
        self._addresses[address.worker_id] = address
        self._place_waiting()

    def lost(self, worker_id: str) -> None:
        """A worker is gone."""
        self._addresses.pop(worker_id, None)
        self.table.lost(worker_id)
        for decision in self.ledger.worker_lost(worker_id, self._clock()):
            self._follow(decision)
        self._place_waiting()

    def stepped(self, worker_id: str, output: pb.StepOutput) -> None:
        """A worker's message: tokens, failures and its newest load."""
        now = self._clock()
        if output.HasField("view"):
            self.table.update(worker_id, load_of(output.view), now)
        for delta in output.deltas:
            try:
                self._take_tokens(delta, now)
            except Exception as error:  # the worker is well: what cannot be taken fails one request, not the link
                log.exception("%s: tokens of %s cannot be taken", worker_id, delta.request_id)
                self._give_up(delta.request_id, error)
        for failure in output.failures:
            try:
                self._take_failure(worker_id, failure, now)
            except Exception as error:
                log.exception("%s: a failure of %s cannot be taken", worker_id, failure.request_id)
                self._give_up(failure.request_id, error)
        self._place_waiting()

    def _take_tokens(self, delta: pb.Delta, now: float) -> None:
        """Pass on what is new in a delta. Runs for every token: fields that are used twice are read once."""
        request_id, index = delta.request_id, delta.index
        flight = self._flights.get(request_id)
        if flight is None:
            return
        note_timings(flight.record, delta)
        finish = finish_reason_from_proto(delta.finish_reason)
        token_ids, logprobs = tuple(delta.token_ids), read_logprobs(delta.logprobs)
        accepted = self.ledger.delta(request_id, delta.epoch, index, token_ids, finish, logprobs)
        first, token_ids, finish, release, logprobs = accepted
        if token_ids:
            self.waiting.generated(request_id, len(token_ids), now)
        if finish is not None:
            self._conclude(request_id, release)
        if token_ids or finish is not None:
            prompt_logprobs = delta.prompt_logprobs if first == index == 0 else ()
            flight.push(Piece(first, token_ids, finish, logprobs, prompt_logprobs), now)
            if request_id in self._others:
                self._begin_others(request_id)

    def _conclude(self, request_id: str, release: tuple[str, ...]) -> None:
        """The answer is complete: its request waits for no target, and no worker has an order of it still to come."""
        entry = self.ledger.entry(request_id)
        self.waiting.concluded(request_id, len(entry.stream), self._clock())
        self._release(request_id, release)
        for worker_id in entry.route.workers if entry.route is not None else ():
            self.table.settle(worker_id, request_id)

    def _take_failure(self, worker_id: str, failure: pb.Failure, now: float) -> None:
        kind = failure_kind_from_proto(failure.kind)
        log.info("%s: attempt %s of %s: %s", worker_id, failure.epoch, failure.request_id, failure.reason)
        decision = self.ledger.failure(failure.request_id, failure.epoch, kind, worker_id, failure.reason, now)
        if decision is not None:
            self._follow(decision)

    def _follow(self, decision: Decision) -> None:
        """A request that waits for another target may fail again, so every decision takes it out of the queue first."""
        self.waiting.take(decision.request_id, self._clock())
        self._release(decision.request_id, decision.release)
        match decision:
            case Retry(request, avoid):
                self._wait(request, avoid)
            case Retarget(request, parked_on, avoid):
                self._wait(request, avoid, parked_on)
            case GiveUp(request_id, error):
                self._flights[request_id].fail(error)
            case _:
                assert_never(decision)
