"""The source's end of one request's handoff: announces what is computed, and keeps it until nobody can need it.

A pure state machine. Knows no link, no clock and no pool: it is told what happened and answers with what to do.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from twinpool.core.errors import Internal
from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.events import (
    Action,
    Admitted,
    Cancel,
    CloseLink,
    Computed,
    ComputeFailed,
    Demote,
    Failed,
    GroupReady,
    Heard,
    LinkClosed,
    LinkSent,
    Parked,
    PeerLost,
    Release,
    Retarget,
    Send,
    SourceEvent,
    SourceMessage,
    Tick,
    Transmit,
)
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Limits, Started, Stopped
from twinpool.kv_transfer.phases import SOURCE_ACTIVE, SOURCE_MOVES, SourcePhase, check_move
from twinpool.kv_transfer.plan import Coverage, Span, max_skip_blocks
from twinpool.kv_transfer.sending import Sending
from twinpool.model.kv_layout import KVLayout


class SourceHandoff:
    """One request's handoff at its source, through every epoch that reuses the same KV.

    Every attribute is an immutable value, so a copy of ``vars()`` is a copy of the machine.
    """

    def __init__(
        self,
        request_id: str,
        epoch: int,
        num_tokens: int,
        layout: KVLayout,
        limits: Limits,
        codec: CodecName = CodecName.RAW,
    ) -> None:
        self.request_id = request_id
        self.epoch = epoch
        self.num_tokens = num_tokens
        self.codec = codec  # of this epoch
        self.phase = SourcePhase.QUEUED
        self._layout = layout
        self._limits = limits
        self._spans: tuple[Span, ...] = ()  # computed, in order
        self._computed = Coverage.of(layout.num_layers, 0, layout.num_blocks(num_tokens))
        self._result: Computed | None = None  # once all is computed
        self._sending = Sending()  # under this epoch
        self._next_epoch: int | None = None  # begins when the sends of this one are over
        self._next_codec = codec
        self._is_unwanted = False  # no epoch begins any more
        self._reason = ""  # why the last epoch stopped
        self._deadline: float | None = None  # of the phase
        self._lease_until = 0.0  # of the peer

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more; the machine may be forgotten."""
        return self.phase in (SourcePhase.COMMITTED, SourcePhase.ENDED)

    @property
    def can_retarget(self) -> bool:
        """Whether another epoch may reuse the KV; if not, an order for one needs a machine of its own."""
        return not (self.is_over or self._is_unwanted)

    @property
    def is_waiting_for_room(self) -> bool:
        """Whether the KV is all computed and none of it moves: what counts as parked blocks."""
        return self._result is not None and self.phase in (SourcePhase.WAITING, SourcePhase.PARKED)

    @property
    def is_waiting_for_credit(self) -> bool:
        """Whether a group is ready and the target's window is full."""
        return self.phase is SourcePhase.STREAMING and self._sending.cursor < len(self._spans)

    def silence_s(self, now: float) -> float:
        """How long the peer whose lease runs was not heard; 0 when none does."""
        return self._limits.lease_s - (self._lease_until - now) if self.phase in SOURCE_ACTIVE else 0.0

    @property
    def next_deadline(self) -> float | None:
        """When ``Tick`` is due, on the clock of ``now``; None when the machine waits for nobody."""
        lease = self._lease_until if self.phase in SOURCE_ACTIVE else None
        return min((at for at in (self._deadline, lease) if at is not None), default=None)

    def advance(self, event: SourceEvent, now: float) -> Sequence[Action]:
        """Take one event; return what to do, in order. Messages of another epoch change nothing.

        Raises:
            Internal, ValueError: this worker's own engine or endpoint broke the order of events. Nothing changed.
        """
        match event:
            case Admitted():
                return self._announce(now)
            case GroupReady(span):
                return self._group_ready(span, now)
            case Computed():
                return self._compute_done(event, now)
            case LinkSent():
                return self._link_sent(event, now)
            case Grant() | Committed() | Abort():
                return self._message(event, now) if event.epoch == self.epoch else []
            case LinkClosed(epoch, reason):
                return self._link_closed(reason, now) if epoch == self.epoch else []
            case PeerLost(epoch, reason):
                return self._peer_lost(reason, now) if epoch == self.epoch else []
            case Heard():
                self._lease_until = now + self._limits.lease_s
                return []
            case Retarget(epoch, codec):
                return self._retarget(epoch, codec, now)
            case Demote(reason):
                is_granted = self.phase in (SourcePhase.STREAMING, SourcePhase.SEALED)
                return [] if is_granted else self._end(FailureKind.PREEMPTED, reason, now)
            case ComputeFailed(reason):
                return self._end(FailureKind.INTERNAL, reason, now)
            case Cancel(reason):
                return self._end(None, reason, now)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    # --- Computing --------------------------------------------------------------------------------------------------

    def _group_ready(self, span: Span, now: float) -> Sequence[Action]:
        if self.is_over:
            return []
        self._computed = self._computed.with_span(span)
        self._spans = (*self._spans, span)
        return self._pump(now)

    def _compute_done(self, event: Computed, now: float) -> Sequence[Action]:
        if self.is_over:
            return []
        if not self._computed.is_complete:
            raise Internal(f"the prefill of {self.request_id} ended before every span was reported")
        self._result = event
        return self._pump(now)

    # --- Sending ----------------------------------------------------------------------------------------------------

    def _announce(self, now: float) -> Sequence[Action]:
        if self.is_over:
            return []
        self._enter(SourcePhase.WAITING, now + self._limits.ask_s)
        self._lease_until = now + self._limits.lease_s
        return [Send(self._started)]

    @property
    def _started(self) -> Started:
        return Started(self.request_id, self.epoch, self.num_tokens, self.codec)

    def _message(self, message: SourceMessage, now: float) -> Sequence[Action]:
        self._lease_until = now + self._limits.lease_s
        match message:
            case Grant():
                return self._granted(message, now) if self.phase is SourcePhase.WAITING else []
            case Committed():
                return self._committed() if self.phase is SourcePhase.SEALED else []
            case Abort(reason=reason, corrupted=corrupted):
                return self._aborted(reason, corrupted, now)

    def _granted(self, grant: Grant, now: float) -> Sequence[Action]:
        limit = max_skip_blocks(self.num_tokens, self._layout.block_tokens)
        if not 0 <= grant.skip_blocks <= limit or grant.window < 1:
            return self._stop(f"the target's grant makes no sense: {grant}", now)
        self._enter(SourcePhase.STREAMING)
        self._sending = Sending(self._started.coding, grant.skip_blocks, grant.window)
        return self._pump(now)

    def _pump(self, now: float) -> Sequence[Action]:
        """Announce what is ready while the window has room; seal behind the last."""
        if self.phase is not SourcePhase.STREAMING:
            return []
        self._sending, groups = self._sending.take(self._spans, self._layout, self._limits.joined_bytes)
        actions: list[Action] = [Transmit(self.epoch, group, span, self._sending.coding) for group, span in groups]
        if self._result is not None and not self._sending.outstanding:
            actions.append(Send(self._sending.seal(self._started, self._result, now)))
            self._enter(SourcePhase.SEALED, now + self._limits.commit_s)
        return actions

    def _link_sent(self, event: LinkSent, now: float) -> Sequence[Action]:
        if event.epoch != self.epoch or event.group not in self._sending.outstanding:
            return []
        self._sending = self._sending.with_sent(event, self._result.at if self._result else None)
        return self._finish_stop(now) if self.phase is SourcePhase.STOPPING else self._pump(now)

    def _committed(self) -> Sequence[Action]:
        self._enter(SourcePhase.COMMITTED)
        return [Release()]

    # --- Stopping ---------------------------------------------------------------------------------------------------

    def _aborted(self, reason: str, corrupted: bool, now: float) -> Sequence[Action]:
        if self.phase in SOURCE_ACTIVE:
            if corrupted:
                return self._end(FailureKind.CORRUPTED, reason, now)
            return self._stop(reason, now, tell=False)
        if corrupted and self.phase in (SourcePhase.STOPPING, SourcePhase.PARKED):  # what was kept is not to be trusted
            return self._end(FailureKind.CORRUPTED, reason, now)
        # The target asks again, so what it waits for was lost on the way; while sends run out, it is still to come.
        stopped = self.phase not in (SourcePhase.QUEUED, SourcePhase.STOPPING)
        return [Send(Stopped(self.request_id, self.epoch))] if stopped else []

    def _link_closed(self, reason: str, now: float) -> Sequence[Action]:
        self._sending = replace(self._sending, outstanding=frozenset())
        if self.phase is SourcePhase.STREAMING:
            return self._stop(reason, now)
        return self._finish_stop(now) if self.phase is SourcePhase.STOPPING else []

    def _peer_lost(self, reason: str, now: float) -> Sequence[Action]:
        close: list[Action] = [CloseLink(self.epoch, reason)] if self._sending.outstanding else []
        return [*close, *self._stop(reason, now)] if self.phase in SOURCE_ACTIVE else close

    def _retarget(self, epoch: int, codec: CodecName, now: float) -> Sequence[Action]:
        if epoch <= max(self.epoch, self._next_epoch or 0) or not self.can_retarget:
            return []
        if self.phase is SourcePhase.QUEUED:
            self.epoch, self.codec = epoch, codec
            return []
        self._next_epoch, self._next_codec = epoch, codec
        if self.phase in SOURCE_ACTIVE:
            return self._stop(f"the gateway named another target under epoch {epoch}", now)
        return self._finish_stop(now)

    def _end(self, kind: FailureKind | None, reason: str, now: float) -> Sequence[Action]:
        """Nobody needs the KV here any more; tell the gateway ``kind``, unless it knows."""
        if not self.can_retarget:
            return []
        self._is_unwanted = True
        epoch = self._next_epoch or self.epoch  # the one the gateway waits for
        report: list[Action] = [Failed(epoch, kind, reason)] if kind else []
        if self.phase in SOURCE_ACTIVE:
            return [*report, *self._stop(reason, now)]
        return [*report, *self._finish_stop(now)]

    def _stop(self, reason: str, now: float, *, tell: bool = True) -> list[Action]:
        """Announce nothing more. What is outstanding runs out, or its link is closed; then comes ``Stopped``."""
        self._enter(SourcePhase.STOPPING, now + self._limits.stop_s)
        self._reason = reason
        abort: list[Action] = [Send(Abort(self.request_id, self.epoch, reason))] if tell else []
        return [*abort, *self._finish_stop(now)]

    def _finish_stop(self, now: float) -> Sequence[Action]:
        if self._sending.outstanding:
            return []
        stopped: list[Action] = []
        if self.phase is SourcePhase.STOPPING:
            stopped = [Send(Stopped(self.request_id, self.epoch))]
        if self._is_unwanted:
            self._enter(SourcePhase.ENDED)
            return [*stopped, Release()]
        if self._next_epoch is not None:
            self.epoch, self._next_epoch, self._sending = self._next_epoch, None, Sending()
            self.codec = self._next_codec
            return [*stopped, *self._announce(now)]
        self._enter(SourcePhase.PARKED, now + self._limits.park_s)
        return [*stopped, Parked(self.epoch, self._reason)]

    def _tick(self, now: float) -> Sequence[Action]:
        if self.phase in SOURCE_ACTIVE and now >= self._lease_until:
            return self._peer_lost(f"no word from the target for {self._limits.lease_s:g} s", now)
        if self._deadline is None or now < self._deadline:
            return []
        if self.phase is SourcePhase.WAITING:  # the first Started, or its Grant, may have been lost
            self._deadline = now + self._limits.ask_s
            return [Send(self._started)]
        if self.phase is SourcePhase.SEALED:
            return self._stop(f"not committed within {self._limits.commit_s:g} s", now)
        if self.phase is SourcePhase.STOPPING:
            self._deadline = now + self._limits.stop_s
            return [CloseLink(self.epoch, f"sends still outstanding after {self._limits.stop_s:g} s")]
        return self._end(None, "nobody came for the parked KV", now)

    def _enter(self, phase: SourcePhase, deadline: float | None = None) -> None:
        check_move(SOURCE_MOVES, self.phase, phase)
        self.phase = phase
        self._deadline = deadline
