"""Requests in flight: which tokens each client was sent, what runs where, and what follows a failure.

Knows no transport and no load; a caller places and sends what it decides, and tells it what happened. The tokens
accepted here are the only truth: each index once, in order, whatever workers repeat, lose or say too late.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, assert_never

from twinpool.core.errors import AttemptsExhausted, Corrupted, Internal, TwinpoolError
from twinpool.core.messages import FailureKind, FinishReason, Request
from twinpool.router.recovery import Decision, GiveUp, Retarget, Retry, culprits_of
from twinpool.router.route import Route
from twinpool.router.token_stream import Logprobs, TokenStream


class Accepted(NamedTuple):
    """Tokens to send to the client now; they begin at ``index`` of the answer. Nothing new: no tokens and no finish.

    ``release`` names workers that still expect work for an answer that is over: cancel the request there.
    ``logprobs`` are those of the tokens, where workers sent them. A named tuple as `Taken` is, for the same reason.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    release: tuple[str, ...] = ()
    logprobs: Logprobs = ()


class Phase(StrEnum):
    WAITING = "waiting"  # to be placed
    DISPATCHED = "dispatched"
    ENDED = "ended"


_MOVES = {
    Phase.WAITING: {Phase.DISPATCHED, Phase.WAITING, Phase.ENDED},
    Phase.DISPATCHED: {Phase.WAITING, Phase.ENDED},
    Phase.ENDED: set[Phase](),
}


@dataclass(slots=True)
class Entry:
    """One request in flight. Only the ledger writes to it."""

    request: Request  # the current attempt
    arrived_at: float
    stream: TokenStream
    prefill_epoch: int  # the attempt whose prefill the current one goes on with; older than it after a retarget only
    phase: Phase = Phase.WAITING
    route: Route | None = None  # the latest; None before the first
    workers: tuple[str, ...] = ()  # that hold something for it
    attempts: int = 1  # that count against the limit, with the current one
    corruptions: int = 0
    avoid: frozenset[str] = frozenset()

    @property
    def is_handed_over(self) -> bool:
        """Whether the prefill worker is no longer needed: the decode worker speaks, and no token before is missing."""
        route = self.route
        return route is not None and route.is_disaggregated and len(self.stream) > self.request.num_emitted + 1


class Ledger:
    """Owns every request that one gateway has open. ``now`` is seconds of the gateway's monotonic clock."""

    def __init__(self, max_attempts: int = 3) -> None:
        self._max_attempts = max_attempts
        self._entries: dict[str, Entry] = {}
        self._on_worker: defaultdict[str, set[str]] = defaultdict(set)  # dispatched or parked there
        self._in_phase = dict.fromkeys(Phase, 0)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def entry(self, request_id: str) -> Entry:
        """What is known of a request that was opened and not yet closed. Read only."""
        return self._entries[request_id]

    @property
    def num_waiting(self) -> int:
        """Requests to be placed."""
        return self._in_phase[Phase.WAITING]

    @property
    def num_dispatched(self) -> int:
        return self._in_phase[Phase.DISPATCHED]

    def open(self, request: Request, now: float) -> None:
        """Begin a request. Its id must not be open."""
        assert request.request_id not in self._entries, f"{request.request_id} is open"
        stream = TokenStream(request.sampling.max_tokens, request.token_ids[request.num_prompt_tokens :])
        self._entries[request.request_id] = Entry(request, now - request.age_s, stream, request.epoch)
        self._in_phase[Phase.WAITING] += 1

    def dispatched(self, request_id: str, route: Route) -> None:
        """The current attempt was sent to the workers of ``route``."""
        entry = self._entries[request_id]
        self._move(entry, Phase.DISPATCHED, route.workers)
        entry.route = route

    def delta(
        self,
        request_id: str,
        epoch: int,
        index: int,
        token_ids: tuple[int, ...],
        finish_reason: FinishReason | None = None,
        logprobs: Logprobs = (),
    ) -> Accepted:
        """Take tokens that a worker says begin at ``index`` of the answer; return what the client may now have.

        Duplicates, older epochs and unknown requests give nothing. Tokens beyond a gap wait for it: the decode worker's
        first token may overtake the prefill worker's. A retarget goes on with an earlier epoch's prefill, so the one
        token of that prefill is accepted under its epoch too.
        """
        entry = self._entries.get(request_id)
        if entry is None or not entry.workers:
            return Accepted(index)
        if epoch != entry.request.epoch:
            is_prefills_token = index == entry.request.num_emitted and len(token_ids) == 1
            if not (entry.prefill_epoch <= epoch < entry.request.epoch and is_prefills_token):
                return Accepted(index)
        first = len(entry.stream)
        taken = entry.stream.take(index, token_ids, finish_reason, logprobs)
        release = self._finish(entry) if taken.finish_reason is not None else ()
        return Accepted(first, taken.token_ids, taken.finish_reason, release, taken.logprobs)

    def failure(
        self, request_id: str, epoch: int, kind: FailureKind, from_worker: str, reason: str, now: float
    ) -> Decision | None:
        """A worker says that an attempt ended there without an answer. None: nothing follows, the news is old.

        The request goes on under the next epoch from the tokens accepted so far. When either end says that a transfer
        failed, the source holds the KV (or will say that it does not), so that only the decode worker is chosen again.
        What a source says after its handoff counts for nothing.
        """
        entry = self._entries.get(request_id)
        if entry is None or entry.phase != Phase.DISPATCHED or epoch != entry.request.epoch:
            return None
        route = entry.route
        assert route is not None
        is_source = route.is_disaggregated and from_worker == route.prefill
        if from_worker not in entry.workers or (is_source and entry.is_handed_over):
            return None
        culprits = culprits_of(route, kind, from_worker)
        if kind == FailureKind.TRANSFER_FAILED and route.is_disaggregated and not entry.is_handed_over:
            return self._retarget(entry, route.prefill, frozenset(route.workers[1:]), reason, now)
        return self._retry(entry, kind, culprits, reason, now)

    def worker_lost(self, worker_id: str, now: float) -> list[Decision]:
        """A worker is gone: decide for every request that needed it, in order of their ids.

        A request whose decode worker already speaks does not need its prefill worker any more.
        """
        decisions: list[Decision] = []
        for request_id in sorted(self._on_worker.get(worker_id, ())):
            entry = self._entries[request_id]
            left = tuple(other for other in entry.workers if other != worker_id)
            self._set_workers(entry, left)
            is_source = entry.route is not None and worker_id == entry.route.prefill
            if not (is_source and entry.is_handed_over):
                culprits, reason = frozenset({worker_id}), f"{worker_id} was lost"
                decisions.append(self._retry(entry, FailureKind.WORKER_LOST, culprits, reason, now))
        return decisions

    def cancel(self, request_id: str) -> tuple[str, ...]:
        """End a request without an answer; return the workers to cancel it at. Unknown or ended: none. Idempotent."""
        entry = self._entries.get(request_id)
        return () if entry is None or entry.phase == Phase.ENDED else self._move(entry, Phase.ENDED)

    def close(self, request_id: str) -> None:
        """Forget a request that has ended."""
        assert self._entries[request_id].phase == Phase.ENDED, f"{request_id} has not ended"
        del self._entries[request_id]
        self._in_phase[Phase.ENDED] -= 1

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError if it differs or an entry contradicts itself."""
        phases = dict.fromkeys(Phase, 0)
        on_worker: defaultdict[str, set[str]] = defaultdict(set)
        for request_id, entry in self._entries.items():
            phases[entry.phase] += 1
            for worker_id in entry.workers:
                on_worker[worker_id].add(request_id)
            assert len(entry.stream) <= entry.request.sampling.max_tokens
            assert entry.phase != Phase.DISPATCHED or entry.workers
            assert entry.phase != Phase.ENDED or not entry.workers
        assert phases == self._in_phase
        assert on_worker == {worker_id: ids for worker_id, ids in self._on_worker.items() if ids}

    def _retry(
        self, entry: Entry, kind: FailureKind, culprits: frozenset[str], reason: str, now: float
    ) -> Retry | GiveUp:
        error = self._charge(entry, kind, reason)
        if error is not None:
            return GiveUp(entry.request.request_id, error, self._move(entry, Phase.ENDED))
        release = self._move(entry, Phase.WAITING)
        prompt = entry.request.token_ids[: entry.request.num_prompt_tokens]
        self._renew(entry, prompt + entry.stream.token_ids, culprits, now)
        entry.prefill_epoch = entry.request.epoch
        return Retry(entry.request, entry.avoid, release, kind)

    def _retarget(
        self, entry: Entry, parked_on: str, culprits: frozenset[str], reason: str, now: float
    ) -> Retarget | GiveUp:
        error = self._charge(entry, FailureKind.TRANSFER_FAILED, reason)
        if error is not None:
            return GiveUp(entry.request.request_id, error, self._move(entry, Phase.ENDED))
        before = self._move(entry, Phase.WAITING, (parked_on,))
        release = tuple(worker_id for worker_id in before if worker_id != parked_on)
        self._renew(entry, entry.request.token_ids, culprits, now)
        return Retarget(entry.request, parked_on, entry.avoid, release)

    def _charge(self, entry: Entry, kind: FailureKind, reason: str) -> TwinpoolError | None:
        """Count a failure; return the error it ends with when that was one too many."""
        match kind:
            case FailureKind.PREEMPTED:
                return None
            case FailureKind.UNANSWERABLE:
                return Internal(reason)
            case FailureKind.CORRUPTED:
                entry.corruptions += 1
                return (
                    Corrupted(f"KV was corrupted again after it was recomputed: {reason}")
                    if entry.corruptions > 1
                    else None
                )
            case FailureKind.WORKER_LOST | FailureKind.TRANSFER_FAILED | FailureKind.PEER_LOST | FailureKind.INTERNAL:
                if entry.attempts == self._max_attempts:
                    return AttemptsExhausted(f"{entry.attempts} attempts failed, the last with {kind}: {reason}")
                entry.attempts += 1
                return None
            case _:
                assert_never(kind)

    @staticmethod
    def _renew(entry: Entry, token_ids: tuple[int, ...], culprits: frozenset[str], now: float) -> None:
        """Make the next attempt's request; its age still counts from the first arrival."""
        entry.request = replace(
            entry.request, epoch=entry.request.epoch + 1, token_ids=token_ids, age_s=now - entry.arrived_at
        )
        entry.avoid |= culprits
        entry.stream.forget_early()

    def _finish(self, entry: Entry) -> tuple[str, ...]:
        """End a request whose answer is complete; return the workers that cannot know it.

        These are the decode worker that still waits for a handoff, and the source that holds KV for another one.
        """
        has_parked, is_handed_over = entry.phase == Phase.WAITING, entry.is_handed_over
        workers = self._move(entry, Phase.ENDED)
        if has_parked:
            return workers
        return () if is_handed_over else workers[1:]

    def _move(self, entry: Entry, phase: Phase, workers: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Change the phase, and who holds something for the request; return who did before."""
        assert phase in _MOVES[entry.phase], f"{entry.request.request_id}: {entry.phase} to {phase}"
        self._in_phase[entry.phase] -= 1
        self._in_phase[phase] += 1
        entry.phase = phase
        before = entry.workers
        self._set_workers(entry, workers)
        return before

    def _set_workers(self, entry: Entry, workers: tuple[str, ...]) -> None:
        for worker_id in entry.workers:
            self._on_worker[worker_id].discard(entry.request.request_id)
        for worker_id in workers:
            self._on_worker[worker_id].add(entry.request.request_id)
        entry.workers = workers
