"""Performs what the router decides for one gateway: places requests, sends orders, passes tokens on, tries again.

Decides nothing: placement, order of waiting, acceptance of tokens and what follows a failure are router/'s. Knows no
gRPC: orders leave through ``send``.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from twinpool.cluster.flight import Flight, Piece
from twinpool.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NoWorkers,
    Overloaded,
    TwinpoolError,
)
from twinpool.core.messages import Request, WorkerAddress
from twinpool.protos.convert import (
    address_to_proto,
    failure_kind_from_proto,
    finish_reason_from_proto,
    request_to_proto,
)
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.admission import AdmissionSettings, Held, HeldQueue, RefusalReason, Refused, admit
from twinpool.router.demand import Demand
from twinpool.router.ledger import Ledger, Phase
from twinpool.router.placement import place
from twinpool.router.recovery import Decision, GiveUp, Retarget, Retry
from twinpool.router.route import Hold, HoldReason, PlacementSettings, Reject, RejectReason, Route
from twinpool.router.views import ViewTable, WorkerLoad

log = logging.getLogger(__name__)

Send = Callable[[str, pb.GatewayMessage], None]

MAX_HOLD_S = 120.0
_NO_WORKERS = {HoldReason.NO_WORKERS: "serving", HoldReason.NO_DECODE_WORKERS: "decode"}


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

    def submit(self, request: Request, deadline_s: float | None = None) -> Flight:
        """Take a request of a client; its tokens come out of the flight returned. `finish` must follow.

        Args:
            deadline_s: from now on; a request that still waits then is given up.

        Raises:
            Overloaded, DeadlineExceeded: it was refused at once. Nothing was started.
        """
        now = self._clock()
        deadline_at = now + (float("inf") if deadline_s is None else deadline_s)
        if len(self._queue):  # it would have to wait
            self._check_admission(deadline_at, now)
        flight = self._flights[request.request_id] = Flight(request, now, deadline_at)
        self.ledger.open(request, now)
        self._wait(Placing(request))
        return flight

    def _check_admission(self, deadline_at: float, now: float) -> None:
        refused = admit(self._queue, deadline_at, self._admission, now)
        if isinstance(refused, Refused):
            if refused.reason is RefusalReason.DEADLINE:
                raise DeadlineExceeded("waiting for a worker")
            raise Overloaded(str(refused.reason), refused.retry_after_s)

    def cancel(self, request_id: str) -> bool:
        """End a request on its client's word; False when there is none of this id that is not over."""
        flight = self._flights.get(request_id)
        if flight is None or self.ledger.entry(request_id).phase is Phase.ENDED:
            return False
        self._end(request_id, Cancelled("cancelled by the client"))
        return True

    def finish(self, request_id: str) -> None:
        """The client's stream is over, whatever the reason: forget the request, and stop what still runs for it."""
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
            role = _NO_WORKERS.get(reason)
            error: TwinpoolError = NoWorkers(role) if role else Overloaded(str(reason), 1.0)
            is_late = now >= self._flights[held.request_id].deadline_s
            self._end(held.request_id, DeadlineExceeded("waiting for a worker") if is_late else error)

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
                    self._end(held.request_id, _rejection(reason))
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
            self.table.update(worker_id, _load(output.view), now)
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
        flight = self._flights.get(delta.request_id)
        if flight is None:
            return
        _note_timings(flight, delta)
        finish = finish_reason_from_proto(delta.finish_reason)
        accepted = self.ledger.delta(delta.request_id, delta.epoch, delta.index, tuple(delta.token_ids), finish)
        if accepted.token_ids or accepted.finish_reason is not None:
            flight.push(Piece(accepted.index, accepted.token_ids, accepted.finish_reason), now)
        self._release(delta.request_id, accepted.release)

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


def _rejection(reason: RejectReason) -> TwinpoolError:
    match reason:
        case RejectReason.TOO_LARGE:
            return InvalidRequest("prompt", str(reason))
        case RejectReason.NO_PREFILL_WORKERS:
            return NoWorkers("prefill")
        case _:
            assert_never(reason)


def _load(view: pb.WorkerView) -> WorkerLoad:
    return WorkerLoad(
        version=view.version,
        free_blocks=view.free_blocks,
        running=view.running,
        context_tokens=view.context_tokens,
        waiting_prefills=view.waiting_prefills,
        waiting_prefill_tokens=view.waiting_prefill_tokens,
        reservations=view.reservations,
        reserved_blocks=view.reserved_blocks,
        parked_blocks=view.parked_blocks,
        peak_blocks=view.peak_blocks,
        cause=view.cause,
    )


def _note_timings(flight: Flight, delta: pb.Delta) -> None:
    record = flight.record
    if delta.HasField("prefill") and delta.index == 0:
        record.queue_s, record.prefill_s = delta.prefill.queue_s, delta.prefill.prefill_s
        record.cached_tokens = delta.prefill.cached_tokens
    if delta.HasField("handoff"):
        handoff = delta.handoff
        record.handoff_s, record.wire_s, record.exposed_s = handoff.handoff_s, handoff.wire_s, handoff.exposed_s
        record.kv_bytes = handoff.kv_bytes
