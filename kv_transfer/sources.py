"""Every handoff that this worker is the source of: performs what their state machines say.

Knows the pairs to targets and the links to them. Decides nothing, and knows the engine by its EngineSide only.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import assert_never

import numpy as np

from twinpool.core.errors import Internal
from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.engine_side import EngineSide
from twinpool.kv_transfer.events import (
    Action,
    Adopt,
    BindBlocks,
    CloseLink,
    ComputeFailed,
    Failed,
    Heard,
    LinkClosed,
    LinkSent,
    Parked,
    PeerLost,
    Receive,
    Release,
    Retarget,
    Send,
    SourceEvent,
    Tick,
    Transmit,
)
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Limits, Message, Started, answer_unknown
from twinpool.kv_transfer.handoff_meters import SourceMeter
from twinpool.kv_transfer.handoff_records import OutgoingHandoff
from twinpool.kv_transfer.metrics import TransferMetrics
from twinpool.kv_transfer.outgoing_link import OutgoingLink, Transmission
from twinpool.kv_transfer.pair import Pair, PairOwner
from twinpool.kv_transfer.pair_link import LinkEnds
from twinpool.kv_transfer.phases import SourcePhase
from twinpool.kv_transfer.source import SourceHandoff
from twinpool.kv_transfer.source_codecs import SourceCodecs
from twinpool.kv_transfer.wire import WireError, message_from_proto, message_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)


class Sources:
    """Owns the handoffs, and a pair with each target. Every method is called in turns."""

    def __init__(
        self,
        engine: EngineSide,
        ends: LinkEnds,
        limits: Limits,
        call: Callable[[PairOwner, WorkerAddress], Pair],
        codecs: SourceCodecs,
    ) -> None:
        self._engine = engine
        self._ends = ends
        self._turns = ends.turns
        self._limits = limits
        self._call = call
        self._codecs = codecs
        self._sources: dict[tuple[str, int], OutgoingHandoff] = {}  # under every epoch that was named
        self._pairs: dict[tuple[str, str], Pair] = {}  # by worker and incarnation
        self.links: dict[Pair, OutgoingLink] = {}
        self._meter = SourceMeter()

    @property
    def num_handoffs(self) -> int:
        return len({id(source) for source in self._sources.values()})

    def metrics(self, now: float) -> TransferMetrics:
        """What they wait for and have come to."""
        found = self._meter.metrics(now)
        reopenings = found.link_reopenings + sum(link.num_reopenings for link in self.links.values())
        return replace(found, link_reopenings=reopenings)

    # --- What the engine says ---------------------------------------------------------------------------------------

    def meet(self, target: WorkerAddress) -> Pair:
        """Return the pair with this target, which is called if there is none."""
        key = (target.worker_id, target.incarnation)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = self._call(self, target)
            self.links[pair] = OutgoingLink(pair, self._ends)
        return pair

    def begin(
        self,
        request_id: str,
        epoch: int,
        num_tokens: int,
        block_ids: Sequence[int],
        target: WorkerAddress,
        *,
        allows_loss: bool,
    ) -> None:
        """Take a request whose prefill begins, for ``target``; events follow."""
        pair = self.meet(target)
        codec = self._choose_codec(pair, allows_loss)
        machine = SourceHandoff(request_id, epoch, num_tokens, self._ends.layout, self._limits, codec)
        ids = np.array(block_ids, dtype=np.int64)

        def tick() -> None:
            self._advance(source, Tick())

        source = OutgoingHandoff(machine, ids, self._turns, tick, allows_loss=allows_loss)
        source.targets[epoch] = pair
        self._sources[request_id, epoch] = source

    def _choose_codec(self, pair: Pair, allows_loss: bool) -> CodecName:
        kind = self.links[pair].kind if pair in self.links else ""
        return self._codecs.choose(pair, kind, self._turns.clock(), allows_loss=allows_loss)

    def can_retarget(self, request_id: str, epoch: int) -> bool:
        """Whether there is KV of the request that may be sent to another target under this epoch."""
        source = self._newest(request_id)
        return source is not None and source.machine.can_retarget and epoch > source.epoch

    def retarget(self, request_id: str, epoch: int, target: WorkerAddress) -> None:
        """Send that KV to another target."""
        source = self._newest(request_id)
        assert source is not None
        source.epoch = epoch
        self._sources[request_id, epoch] = source
        pair = source.targets[epoch] = self.meet(target)
        self._advance(source, Retarget(epoch, self._choose_codec(pair, source.allows_loss)))

    def _newest(self, request_id: str) -> OutgoingHandoff | None:
        """Of several handoffs of a request, all but the newest are coming to their end."""
        found = (source for (name, _), source in self._sources.items() if name == request_id)
        return max(found, key=lambda source: source.epoch, default=None)

    def tell(self, request_id: str, epoch: int, event: SourceEvent) -> None:
        """Pass an event of the engine or the gateway on; without a handoff it is void."""
        source = self._sources.get((request_id, epoch))
        if source is not None:
            self._advance(source, event)

    def close(self, reason: str) -> list[Pair]:
        """Hang up on every target and forget all; the answer is whom to join."""
        for source in self._sources.values():
            source.alarm.cancel()
        self._sources.clear()
        pairs = list(self._pairs.values())
        for pair in pairs:
            pair.end(reason)
        return pairs

    # --- What targets say (PairOwner) -------------------------------------------------------------------------------

    def on_open(self, pair: Pair) -> None:
        """See PairOwner."""
        self.links[pair].on_pair_open()

    def on_heard(self, pair: Pair) -> None:
        """See PairOwner."""
        for source in self._paired_with(pair):
            if source.targets.get(source.machine.epoch) is pair:
                self._advance(source, Heard())

    def on_lost(self, pair: Pair) -> None:
        """See PairOwner."""
        reason = pair.lost_reason or ""
        if pair.peer is not None:
            self._pairs.pop((pair.peer.worker_id, pair.peer.incarnation), None)
        for source in self._paired_with(pair):
            for epoch in [epoch for epoch, target in source.targets.items() if target is pair]:
                self._advance(source, PeerLost(epoch, reason))
        self._codecs.forget(pair)
        link = self.links.pop(pair)
        self._meter.num_reopenings += link.num_reopenings
        link.close(reason, tell=False)

    def on_message(self, pair: Pair, envelope: pb.PeerMessage) -> None:
        """See PairOwner."""
        match envelope.WhichOneof("kind"):
            case "link_ready":
                self.links[pair].on_link_ready(envelope.link_ready)
            case "link_closed":
                self.links[pair].on_link_closed(envelope.link_closed)
            case "link_unused":
                self.links[pair].on_link_unused(envelope.link_unused)
            case _:
                self._hear(pair, message_from_proto(envelope))

    def _hear(self, pair: Pair, message: Message) -> None:
        if not isinstance(message, Grant | Committed | Abort):
            raise WireError(f"a target does not say {type(message).__name__}")
        source = self._sources.get((message.request_id, message.epoch))
        is_its_own = source is not None and source.targets.get(message.epoch) is pair
        if source is None or not is_its_own or source.machine.epoch > message.epoch:  # nothing of it is outstanding
            for answer in answer_unknown(message):
                pair.send(message_to_proto(answer))
            return
        self._advance(source, message)

    def _paired_with(self, pair: Pair) -> list[OutgoingHandoff]:
        found = {id(s): s for s in self._sources.values() if any(target is pair for target in s.targets.values())}
        return list(found.values())

    # --- What the machines say --------------------------------------------------------------------------------------

    def _advance(self, source: OutgoingHandoff, event: SourceEvent) -> None:
        machine, before = source.machine, source.machine.phase
        if machine.is_over:
            return
        try:
            actions = machine.advance(event, self._turns.clock())
        except (Internal, ValueError) as error:
            log.exception("handoff of %s, epoch %d, is given up", machine.request_id, machine.epoch)
            actions = machine.advance(ComputeFailed(str(error)), self._turns.clock())
        self._meter.note(source, event, actions, self._turns.clock())
        if before is SourcePhase.WAITING and machine.phase is SourcePhase.STREAMING:
            self._engine.granted(machine.request_id, source.epoch)
        for action in actions:
            self._perform(source, action)
        source.alarm.set(machine.next_deadline)
        if machine.is_over:
            self._forget(source)

    def _perform(self, source: OutgoingHandoff, action: Action) -> None:
        request_id = source.machine.request_id
        match action:
            case Send(message):
                self._send(source, message)
            case Transmit():
                self._transmit(source, action)
            case CloseLink(epoch, reason):
                link = self.links.get(source.targets[epoch])
                if link is not None:
                    link.close(reason)
                self._turns.post(partial(self._advance, source, LinkClosed(epoch, reason)))
            case Parked(_, reason):
                self._engine.parked(request_id, source.epoch, reason)
            case Failed(_, kind, reason):
                self._engine.failed(request_id, source.epoch, kind, reason)
            case Release():
                self._engine.release_source(request_id, source.epoch)
            case Receive() | BindBlocks() | Adopt():
                raise AssertionError(f"a source does not ask for {action}")
            case _:
                assert_never(action)

    def _send(self, source: OutgoingHandoff, message: Message) -> None:
        pair = source.targets[message.epoch]
        if pair.is_lost:
            lost = PeerLost(message.epoch, pair.lost_reason or "")
            self._turns.post(partial(self._advance, source, lost))
            return
        pair.send(message_to_proto(message))
        if isinstance(message, Started):
            self.links[pair].ensure()  # opens while the prompt is computed

    def _transmit(self, source: OutgoingHandoff, action: Transmit) -> None:
        epoch, span, coding = action.epoch, action.span, action.coding
        pair = source.targets[epoch]
        link = self.links.get(pair)
        if link is None:
            lost = LinkClosed(epoch, pair.lost_reason or "")
            self._turns.post(partial(self._advance, source, lost))
            return

        def on_sent(started_s: float, ended_s: float) -> None:
            if coding.is_raw:
                self._codecs.sent_raw(pair, span.num_bytes(self._ends.layout), started_s, ended_s)
            self._advance(source, LinkSent(epoch, action.group, started_s, ended_s))

        def on_lost(reason: str) -> None:
            self._advance(source, LinkClosed(epoch, reason))

        block_ids = source.block_ids[span.first_block : span.end_block]
        link.transmit(Transmission(source.machine.request_id, epoch, span, block_ids, on_sent, on_lost, coding))

    def _forget(self, source: OutgoingHandoff) -> None:
        source.alarm.cancel()
        self._sources = {key: other for key, other in self._sources.items() if other is not source}
