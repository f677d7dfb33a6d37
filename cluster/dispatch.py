"""Performs what the router decides for one gateway: places requests, sends orders, passes tokens on, tries again.

Decides nothing: placement, order of waiting, acceptance of tokens and what follows a failure are router/'s. Knows no
gRPC: orders leave through ``send``.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from twinpool.cluster.flight import Flight, Flights, Piece
from twinpool.cluster.refusals import expiry, refusal, rejection
from twinpool.cluster.step_news import load_of, note_timings, read_logprobs
from twinpool.core.errors import Cancelled, TwinpoolError
from twinpool.core.messages import Request, WorkerAddress
from twinpool.protos.convert import (
    address_to_proto,
    failure_kind_from_proto,
    finish_reason_from_proto,
    request_to_proto,
)
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.admission import AdmissionSettings, Held, HeldQueue, Refused, admit
from twinpool.router.demand import Demand
from twinpool.router.ledger import Ledger, Phase
from twinpool.router.placement import place
from twinpool.router.recovery import Decision, GiveUp, Retarget, Retry
from twinpool.router.route import Hold, HoldReason, PlacementSettings, Reject, Route
from twinpool.router.views import ViewTable

log = logging.getLogger(__name__)

Send = Callable[[str, pb.GatewayMessage], None]

MAX_HOLD_S = 120.0


@dataclass(frozen=True, slots=True)
class Placing:
    """An attempt that waits for a worker, and what is known about where it should go."""

    request: Request
    avoid: frozenset[str] = frozenset()
    parked_on: str | None = None


class Dispatcher:
    """Owns the requests of one gateway, from acceptance to the end of their stream."""

    def __init__(
        self,
        placement: PlacementSettings,
        admission: AdmissionSettings,
        max_attempts: int,
        *,
        send: Send,
        clock: Callable[[], float],
    ) -> None:
        self.table = ViewTable()
        self.ledger = Ledger(max_attempts)
        self._placement = placement
        self._admission = admission
        self._send = send
        self._clock = clock
        self._queue = HeldQueue()
        self._placing: dict[str, Placing] = {}
        self._held_for: dict[str, HoldReason] = {}
        self._flights: dict[str, Flight] = {}
        self._others: dict[str, tuple[Flight, ...]] = {}  # that begin when the first of their call has a token
        self._addresses: dict[str, WorkerAddress] = {}
        self._turn = 0

    @property
    def num_queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    @property
    def num_open(self) -> int:
        """Requests whose client has not gone."""
        return len(self._flights)

    # --- requests -------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], deadline_s: float | None = None) -> Flights:
        """Take the requests of one client call, one for each answer, of one prompt; `finish` must follow for each.

        The others are placed when the first has its first token, to find the prompt in that worker's prefix cache; or
        at once, when the prompt fills no block.

        Args:
            deadline_s: from now on; requests that still wait then are given up.

        Raises:
            Overloaded, DeadlineExceeded: they were refused at once, all of them. Nothing was started.
        """
        now = self._clock()
        deadline_at = now + (float("inf") if deadline_s is None else deadline_s)
        if len(self._queue):  # they would have to wait
            self._check_admission(len(requests), deadline_at, now)
        flights = Flights(requests, now, deadline_at)
        first, *others = flights.of_choice
        first_id = first.request.request_id
        self._others[first_id] = tuple(others)
        self._begin(first)
        if self._fits_one_block(first.request.num_prompt_tokens):
            self._begin_others(first_id)
        return flights

    def _check_admission(self, num_requests: int, deadline_at: float, now: float) -> None:
        num_promised = sum(map(len, self._others.values()))
        refused = admit(self._queue, deadline_at, self._admission, now, num_promised + num_requests)
        if isinstance(refused, Refused):
            raise refusal(refused)

    def _begin(self, flight: Flight) -> None:
        self._flights[flight.request.request_id] = flight
        self.ledger.open(flight.request, flight.arrived_s)
        self._wait(Placing(flight.request))

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
        return True

    def finish(self, request_id: str) -> None:
        """The client wants no more of it, whatever the reason: forget the request, and stop what still runs for it.

        With the first request of a call go the others that have not begun. Idempotent.
        """
        self._others.pop(request_id, None)
        if request_id not in self.ledger:
            return
        self._unhold(request_id)
        self._release(request_id, self.ledger.cancel(request_id))
        self.ledger.close(request_id)
        del self._flights[request_id]

    def tick(self) -> None:
        """Refuse what waited too long. Called about once a second."""
        now = self._clock()
        for held in self._queue.take_expired(now):
            reason = self._held_for.get(held.request_id, HoldReason.NO_WORKERS)
            is_late = now >= self._flights[held.request_id].deadline_s
            self._end(held.request_id, expiry(reason, is_late=is_late))

    def _end(self, request_id: str, error: TwinpoolError) -> None:
        self._unhold(request_id)
        self._release(request_id, self.ledger.cancel(request_id))
        self._flights[request_id].fail(error)

    def _unhold(self, request_id: str) -> None:
        self._queue.take(request_id)
        self._placing.pop(request_id, None)
        self._held_for.pop(request_id, None)

    # --- placing --------------------------------------------------------------------------------------------------

    def _wait(self, placing: Placing) -> None:
        request_id = placing.request.request_id
        flight = self._flights[request_id]
        self._placing[request_id] = placing
        give_up_at = min(self._clock() + MAX_HOLD_S, flight.deadline_s)
        self._queue.hold(Held(placing.request.priority, flight.arrived_s, request_id, give_up_at))
        self._place_waiting()

    def _place_waiting(self) -> None:
        """Place in order until one has to wait."""
        while (held := self._queue.first()) is not None:
            now = self._clock()
            placing = self._placing[held.request_id]
            request = replace(placing.request, age_s=max(0.0, now - held.arrived_at))
            demand = Demand.of(request, avoid=placing.avoid, parked_on=placing.parked_on)
            decision = place(demand, self.table.snapshot(now), self._placement, self._turn)
            if isinstance(decision, Hold):
                self._held_for[held.request_id] = decision.reason
                return
            self._unhold(held.request_id)
            match decision:
                case Route():
                    self._turn += 1
                    self._dispatch(replace(placing, request=request), decision, now)
                case Reject(reason):
                    self._end(held.request_id, rejection(reason))
                case _:
                    assert_never(decision)

    def _dispatch(self, placing: Placing, route: Route, now: float) -> None:
        request = placing.request
        request_id, spec = request.request_id, request_to_proto(request)
        self.ledger.dispatched(request_id, route)
        flight = self._flights[request_id]
        record = flight.record
        record.prefill_worker, record.decode_worker = route.prefill, route.decode or route.prefill
        record.placement, record.attempts = route.why, request.epoch
        record.held_s = now - flight.arrived_s
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
            prefill_tokens=0 if placing.parked_on else len(request.token_ids),
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
        decisions = self.ledger.worker_lost(worker_id, self._clock())
        for decision in decisions:  # all, before anything is placed anew: what they say is true already
            self._unhold(decision.request_id)
        for decision in decisions:
            self._follow(decision)

    def stepped(self, worker_id: str, output: pb.StepOutput) -> None:
        """A worker's message: tokens, failures and its newest load."""
        now = self._clock()
        if output.HasField("view"):
            self.table.update(worker_id, load_of(output.view), now)
        for delta in output.deltas:
            self._take_tokens(delta, now)
        for failure in output.failures:
            kind = failure_kind_from_proto(failure.kind)
            log.info("%s: attempt %s of %s: %s", worker_id, failure.epoch, failure.request_id, failure.reason)
            decision = self.ledger.failure(failure.request_id, failure.epoch, kind, worker_id, failure.reason, now)
            if decision is not None:
                self._follow(decision)
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
        if token_ids or finish is not None:
            prompt_logprobs = delta.prompt_logprobs if first == index == 0 else ()
            flight.push(Piece(first, token_ids, finish, logprobs, prompt_logprobs), now)
            if request_id in self._others:
                self._begin_others(request_id)
        self._release(request_id, release)

    def _follow(self, decision: Decision) -> None:
        """A request that waits for another target may fail again, so every decision takes it out of the queue first."""
        match decision:
            case Retry(request, avoid, release):
                self._unhold(request.request_id)
                self._release(request.request_id, release)
                self._wait(Placing(request, avoid))
            case Retarget(request, parked_on, avoid, release):
                self._unhold(request.request_id)
                self._release(request.request_id, release)
                self._wait(Placing(request, avoid, parked_on))
            case GiveUp(request_id, error, release):
                self._unhold(request_id)
                self._release(request_id, release)
                self._flights[request_id].fail(error)
            case _:
                assert_never(decision)
