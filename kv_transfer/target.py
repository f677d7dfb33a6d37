"""The target's end of one handoff: makes room, counts what arrives, and adopts the request only when it is whole.

A pure state machine. Knows no link, no clock and no pool: it is told what happened and answers with what to do.
"""

from collections.abc import Sequence
from typing import assert_never

from twinpool.core.errors import Internal
from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.events import (
    Action,
    Adopt,
    BindBlocks,
    Bound,
    Cancel,
    CloseLink,
    Failed,
    GroupReceived,
    Heard,
    LinkClosed,
    PeerLost,
    Receive,
    Release,
    Reserve,
    Send,
    TargetEvent,
    TargetMessage,
    Tick,
)
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Limits, Next, Seal, Started, Stopped
from twinpool.kv_transfer.phases import TARGET_GRANTED, TARGET_MOVES, TARGET_ORDERED, TargetPhase, check_move
from twinpool.kv_transfer.plan import Coverage, max_skip_blocks
from twinpool.kv_transfer.terms import disagreement
from twinpool.model.kv_layout import KVLayout


class TargetHandoff:
    """One epoch of one request's handoff at its target.

    Every attribute is an immutable value, so a copy of ``vars()`` is a copy of the machine.
    """

    def __init__(
        self,
        request_id: str,
        epoch: int,
        layout: KVLayout,
        window: int,
        limits: Limits,
        codecs: tuple[CodecName, ...] = (CodecName.RAW,),
    ) -> None:
        self.request_id = request_id
        self.epoch = epoch
        self.phase = TargetPhase.NEW
        self._layout = layout
        self._window = window
        self._limits = limits
        self._codecs = codecs  # that KV may come in
        self._announcement: Started | None = None  # what the source says
        self._order: Reserve | None = None  # what the gateway says
        self._coverage = Coverage.of(layout.num_layers, 0, 0)  # by announced groups
        self._seqs: frozenset[int] = frozenset()  # announced
        self._posted: frozenset[int] = frozenset()  # of them, receives into the blocks that are not over
        self._num_received = 0
        self._seal: Seal | None = None
        self._has_stopped = False  # the source sends nothing more
        self._deadline: float | None = None  # of the phase
        self._lease_until = 0.0  # of the source

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more. Better kept for a while: it still answers late messages."""
        return self.phase in (TargetPhase.COMMITTED, TargetPhase.ENDED)

    @property
    def _coding(self) -> Coding:
        assert self._announcement is not None
        return self._announcement.coding

    def silence_s(self, now: float) -> float:
        """How long the source whose lease runs has not been heard; 0 when none does."""
        return self._limits.lease_s - (self._lease_until - now) if self.phase in TARGET_ORDERED else 0.0

    @property
    def next_deadline(self) -> float | None:
        """When ``Tick`` is due, on the clock of ``now``; None when the machine waits for nobody."""
        lease = self._lease_until if self.phase in TARGET_ORDERED else None
        return min((at for at in (self._deadline, lease) if at is not None), default=None)

    def advance(self, event: TargetEvent, now: float) -> Sequence[Action]:
        """Take one event; return what to do, in order. Messages of another epoch change nothing.

        Raises:
            Internal: this worker's own engine or endpoint broke the order of events. Nothing changed.
        """
        match event:
            case Started() | Next() | Seal() | Abort() | Stopped():
                if event.epoch != self.epoch:
                    return []
                self._lease_until = now + self._limits.lease_s
                return self._message(event, now)
            case Reserve():
                return self._reserved(event, now)
            case Bound(skip_blocks):
                return self._bound(skip_blocks)
            case GroupReceived(seq, digest_ok):
                return self._received(seq, digest_ok, now)
            case LinkClosed(epoch, reason):
                return self._link_closed(reason, now) if epoch == self.epoch else []
            case PeerLost(epoch, reason):
                return self._peer_lost(reason, now) if epoch == self.epoch else []
            case Heard():
                self._lease_until = now + self._limits.lease_s
                return []
            case Cancel(reason):
                return self._give_up(None, reason, now)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    # --- Making room ------------------------------------------------------------------------------------------------

    def _message(self, message: TargetMessage, now: float) -> Sequence[Action]:
        match message:
            case Started():
                return self._started(message, now)
            case Next():
                return self._announced(message, now)
            case Seal():
                return self._sealed(message, now)
            case Abort(reason=reason):
                return self._give_up(None, reason, now, tell=False)
            case Stopped():
                self._has_stopped = True
                if self.phase is TargetPhase.DRAINING:
                    return self._finish_drain()
                return self._give_up(None, "the source stopped", now, tell=False)

    def _started(self, message: Started, now: float) -> Sequence[Action]:
        if self.is_over or self.phase is TargetPhase.DRAINING:
            return self._refuse()
        if self.phase is TargetPhase.RECEIVING and not self._seqs:
            return [self._grant()]  # the first one may have been lost
        if self._announcement is None:
            self._announcement = message
            if self.phase is TargetPhase.NEW:
                self._enter(TargetPhase.ANNOUNCED, now + self._limits.announce_s)
        return self._want(now)

    def _reserved(self, order: Reserve, now: float) -> Sequence[Action]:
        if self.phase in (TargetPhase.NEW, TargetPhase.ANNOUNCED):
            self._order = order
            self._lease_until = now + self._limits.lease_s
            if self.phase is TargetPhase.NEW:
                self._enter(TargetPhase.RESERVED)
        return self._want(now)

    def _want(self, now: float) -> Sequence[Action]:
        is_early = self.phase in (TargetPhase.ANNOUNCED, TargetPhase.RESERVED)
        if not is_early or self._announcement is None or self._order is None:
            return []
        reason = disagreement(self._announcement, self._order, self._codecs)
        if reason:
            return self._give_up(FailureKind.INTERNAL, reason, now)
        self._enter(TargetPhase.WANTING)
        return [BindBlocks(self._layout.num_blocks(self._order.num_tokens))]

    def _bound(self, skip_blocks: int) -> Sequence[Action]:
        if self.phase is TargetPhase.ENDED:
            return []  # given up meanwhile: Release is on its way to the engine, behind BindBlocks
        num_tokens = self._order.num_tokens if self._order else 0
        if not 0 <= skip_blocks <= max_skip_blocks(num_tokens, self._layout.block_tokens):
            raise Internal(f"{skip_blocks} blocks to skip of a request of {num_tokens} tokens")
        self._enter(TargetPhase.RECEIVING)
        num_blocks = self._layout.num_blocks(num_tokens)
        self._coverage = Coverage.of(self._layout.num_layers, skip_blocks, num_blocks)
        return [self._grant()]

    def _grant(self) -> Action:
        return Send(Grant(self.request_id, self.epoch, self._coverage.skip_blocks, self._window))

    # --- Receiving --------------------------------------------------------------------------------------------------

    def _announced(self, message: Next, now: float) -> Sequence[Action]:
        """A receive is posted for every group, wanted or not: the link knows only order."""
        if message.seq in self._seqs:
            return []
        self._seqs |= {message.seq}
        span = message.span
        discard = Receive(message.seq, span, discard=True, coding=message.coding)
        if self.phase not in TARGET_GRANTED:
            return [discard]
        reason = ""
        if not self._coverage.is_inside(span):
            reason = f"the source announced {span}, which was not asked for"
        elif message.coding != self._coding:
            reason = f"the source announced {span} as {message.coding.codec}, the handoff as {self._coding.codec}"
        if reason:
            return [CloseLink(self.epoch, reason), *self._give_up(FailureKind.TRANSFER_FAILED, reason, now)]
        if self._coverage.overlaps(span):
            return [discard, *self._give_up(FailureKind.TRANSFER_FAILED, f"the source sent {span} twice", now)]
        self._coverage = self._coverage.with_span(span)
        self._posted |= {message.seq}
        return [Receive(message.seq, span, coding=self._coding)]

    def _received(self, seq: int, digest_ok: bool, now: float) -> Sequence[Action]:
        if seq not in self._posted:
            return []
        self._posted -= {seq}
        if self.phase is TargetPhase.DRAINING:
            return self._finish_drain()
        if not digest_ok:
            reason = f"group {seq} of the link arrived with a wrong digest"
            return self._give_up(FailureKind.CORRUPTED, reason, now)
        self._num_received += 1
        return self._settle(now)

    def _sealed(self, seal: Seal, now: float) -> Sequence[Action]:
        if self.phase is TargetPhase.ENDED:
            return self._refuse()
        if self.phase is not TargetPhase.RECEIVING:
            return []
        self._seal = seal
        self._enter(TargetPhase.VERIFYING, now + self._limits.verify_s)
        return self._settle(now)

    def _settle(self, now: float) -> Sequence[Action]:
        """Adopt when the seal is there and every group that it counts has arrived."""
        seal = self._seal
        if seal is None or self._posted or self._num_received < seal.num_groups:
            return []
        if not self._coverage.is_complete or seal.num_groups != self._num_received:
            reason = f"sealed after {seal.num_groups} groups, but {self._num_received} came and do not make the whole"
            return self._give_up(FailureKind.TRANSFER_FAILED, reason, now)
        self._enter(TargetPhase.COMMITTED)
        return [Adopt(seal, self._coding.codec), Send(Committed(self.request_id, self.epoch))]

    # --- Giving up --------------------------------------------------------------------------------------------------

    def _link_closed(self, reason: str, now: float) -> Sequence[Action]:
        if self.phase not in TARGET_GRANTED and self.phase is not TargetPhase.DRAINING:
            return []  # nothing was sent on it; the grant will be for another link
        self._seqs, self._posted, self._has_stopped = frozenset(), frozenset(), True
        if self.phase is TargetPhase.DRAINING:
            return self._finish_drain()
        return self._give_up(FailureKind.TRANSFER_FAILED, reason, now)

    def _peer_lost(self, reason: str, now: float) -> Sequence[Action]:
        close: list[Action] = []
        if self.phase in TARGET_GRANTED or self.phase is TargetPhase.DRAINING:
            close = [CloseLink(self.epoch, reason)]
        return [*close, *self._give_up(FailureKind.PEER_LOST, reason, now)]

    def _give_up(self, kind: FailureKind | None, reason: str, now: float, *, tell: bool = True) -> list[Action]:
        """This epoch will not commit: ``kind`` for the gateway unless it knows, the source told unless it knows.

        Blocks that were granted stay until the source has stopped or the link is closed.
        """
        if self.is_over or self.phase is TargetPhase.DRAINING:
            return []
        actions: list[Action] = [Failed(self.epoch, kind, reason)] if kind and self._order else []
        if tell:
            corrupted = kind is FailureKind.CORRUPTED
            actions.append(Send(Abort(self.request_id, self.epoch, reason, corrupted)))
        if self.phase in TARGET_GRANTED:
            self._enter(TargetPhase.DRAINING, now + self._limits.stop_s)
            return [*actions, *self._finish_drain()]
        self._enter(TargetPhase.ENDED)
        return [*actions, Release()]

    def _finish_drain(self) -> list[Action]:
        if not self._has_stopped or self._posted:
            return []
        self._enter(TargetPhase.ENDED)
        return [Release()]

    def _refuse(self) -> Sequence[Action]:
        return [Send(Abort(self.request_id, self.epoch, "the target has given this epoch up"))]

    def _tick(self, now: float) -> Sequence[Action]:
        if self.phase in TARGET_ORDERED and now >= self._lease_until:
            return self._peer_lost(f"no word from the source for {self._limits.lease_s:g} s", now)
        if self._deadline is None or now < self._deadline:
            return []
        if self.phase is TargetPhase.DRAINING:
            self._deadline = now + self._limits.stop_s
            return [CloseLink(self.epoch, f"the source has not stopped within {self._limits.stop_s:g} s")]
        if self.phase is TargetPhase.VERIFYING:
            reason = f"groups missing {self._limits.verify_s:g} s after the seal"
            return self._give_up(FailureKind.TRANSFER_FAILED, reason, now)
        return self._give_up(None, f"no order from a gateway within {self._limits.announce_s:g} s", now)

    def _enter(self, phase: TargetPhase, deadline: float | None = None) -> None:
        check_move(TARGET_MOVES, self.phase, phase)
        self.phase = phase
        self._deadline = deadline
