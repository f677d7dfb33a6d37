"""Every handoff that this worker is the target of: performs what their state machines say.

Knows the pairs that sources called and the links with them. Decides nothing; knows the engine by its EngineSide only.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import assert_never

import numpy as np

from twinpool.core.errors import Internal
from twinpool.core.messages import FailureKind, WorkerAddress
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.engine_side import EngineSide
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
    Parked,
    PeerLost,
    Receive,
    Release,
    Reserve,
    Send,
    TargetEvent,
    Tick,
    Transmit,
)
from twinpool.kv_transfer.handoff import Abort, Limits, Message, Next, Seal, Started, Stopped, answer_unknown
from twinpool.kv_transfer.handoff_meters import TargetMeter
from twinpool.kv_transfer.handoff_records import IncomingHandoff, PeerId
from twinpool.kv_transfer.incoming_link import IncomingLink, Reception
from twinpool.kv_transfer.pair import Pair
from twinpool.kv_transfer.pair_link import LinkEnds
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.kv_transfer.wire import WireError, message_from_proto, message_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)


class Targets:
    """Owns the handoffs, and a pair with each source. Every method is called in turns."""

    def __init__(
        self, engine: EngineSide, ends: LinkEnds, limits: Limits, window: int, codecs: tuple[CodecName, ...]
    ) -> None:
        self._engine = engine
        self._ends = ends
        self._turns = ends.turns
        self._limits = limits
        self._window = window
        self._codecs = codecs  # that KV may come in
        self._targets: dict[tuple[str, int], IncomingHandoff] = {}
        self._pairs: dict[PeerId, Pair] = {}  # those that said hello
        self._all_pairs: set[Pair] = set()
        self.links: dict[Pair, IncomingLink] = {}
        self.meter = TargetMeter()

    @property
    def num_handoffs(self) -> int:
        return sum(not target.machine.is_over for target in self._targets.values())

    # --- What the engine and the gateways say -----------------------------------------------------------------------

    def reserve(
        self, request_id: str, epoch: int, num_tokens: int, source: WorkerAddress, *, allows_loss: bool
    ) -> None:
        """Expect a request's KV from this source."""
        key = (request_id, epoch)
        named = (source.worker_id, source.incarnation)
        target = self._targets.get(key)
        if target is not None and target.source != named:  # whoever announced it is not who was meant
            self._advance(target, Cancel("the gateway named another source"))
            target.alarm.cancel()
            target = None
        if target is None:
            target = self._begin(key, named)
        if target.machine.is_over:
            self._engine.failed(request_id, epoch, FailureKind.TRANSFER_FAILED, "the source's announcement lapsed")
            self._engine.release_target(request_id, epoch)
            return
        target.num_tokens = num_tokens
        self._advance(target, Reserve(num_tokens, allows_loss))

    def is_wanted(self, request_id: str, epoch: int) -> bool:
        """Whether a handoff waits for blocks, or soon will."""
        target = self._targets.get((request_id, epoch))
        return target is not None and not target.machine.is_over

    def bound(self, request_id: str, epoch: int, block_ids: Sequence[int], skip_blocks: int) -> None:
        """The engine's answer to ``bind_blocks``."""
        target = self._targets[request_id, epoch]
        if len(block_ids) != self._ends.layout.num_blocks(target.num_tokens):
            raise Internal(f"{len(block_ids)} blocks were bound for {target.num_tokens} tokens")
        target.block_ids = np.array(block_ids, dtype=np.int64)
        self._advance(target, Bound(skip_blocks))

    def cancel(self, request_id: str, epoch: int, reason: str) -> None:
        """Nobody wants it any more; without a handoff that is void."""
        target = self._targets.get((request_id, epoch))
        if target is not None:
            self._advance(target, Cancel(reason))

    def welcome(self, pair: Pair) -> None:
        """A source is calling."""
        self._all_pairs.add(pair)
        self.links[pair] = IncomingLink(pair, self._ends)

    def close(self, reason: str) -> list[Pair]:
        """Hang up on every source and forget all; the answer is whom to join."""
        for target in self._targets.values():
            target.alarm.cancel()
        self._targets.clear()
        pairs = list(self._all_pairs)
        for pair in pairs:
            pair.end(reason)
        return pairs

    def _begin(self, key: tuple[str, int], source: PeerId) -> IncomingHandoff:
        machine = TargetHandoff(*key, self._ends.layout, self._window, self._limits, self._codecs)
        target = IncomingHandoff(machine, source, self._turns, lambda: self._ring(target))
        self._targets[key] = target
        return target

    def _ring(self, target: IncomingHandoff) -> None:
        if target.machine.is_over:
            self._targets.pop((target.machine.request_id, target.machine.epoch), None)
        else:
            self._advance(target, Tick())

    # --- What sources say (PairOwner) -------------------------------------------------------------------------------

    def on_open(self, pair: Pair) -> None:
        """See PairOwner."""
        former = self._pairs.get(_id(pair))
        self._pairs[_id(pair)] = pair
        if former is not None:
            former.end("the source called again")

    def on_heard(self, pair: Pair) -> None:
        """See PairOwner."""
        for target in list(self._targets.values()):
            if target.pair is pair or (target.pair is None and target.source == _id(pair)):
                self._advance(target, Heard())

    def on_lost(self, pair: Pair) -> None:
        """See PairOwner. A handoff of which the source has not spoken yet may still begin on another pair."""
        reason = pair.lost_reason or ""
        self._all_pairs.discard(pair)
        if pair.peer is not None and self._pairs.get(_id(pair)) is pair:
            del self._pairs[_id(pair)]
        for target in list(self._targets.values()):
            if target.pair is pair:
                self._advance(target, PeerLost(target.machine.epoch, reason))
        self.links.pop(pair).close(reason, tell=False)

    def on_message(self, pair: Pair, envelope: pb.PeerMessage) -> None:
        """See PairOwner."""
        match envelope.WhichOneof("kind"):
            case "open_link":
                self.links[pair].on_open_link(envelope.open_link)
            case "link_closed":
                self.links[pair].on_link_closed(envelope.link_closed)
            case _:
                self._hear(pair, message_from_proto(envelope))

    def _hear(self, pair: Pair, message: Message) -> None:
        target = self._targets.get((message.request_id, message.epoch))
        if target is not None and target.source != _id(pair):
            target = None
        match message:
            case Started():
                self._hear_started(pair, message, target)
            case Next():
                self._hear_next(pair, message, target)
            case Seal() | Abort() | Stopped():
                if target is not None:
                    self._advance(target, message)
                else:
                    for answer in answer_unknown(message):
                        pair.send(message_to_proto(answer))
            case _:
                raise WireError(f"a source does not say {type(message).__name__}")

    def _hear_started(self, pair: Pair, message: Started, target: IncomingHandoff | None) -> None:
        key = (message.request_id, message.epoch)
        if target is None and key in self._targets:
            refusal = Abort(*key, "another source was named")
            pair.send(message_to_proto(refusal))
            return
        target = target or self._begin(key, _id(pair))
        target.pair = pair
        self._advance(target, message)

    def _hear_next(self, pair: Pair, message: Next, target: IncomingHandoff | None) -> None:
        """Post a receive whatever the handoff says: the link knows only order."""
        link = self.links[pair]
        link.check_order(message)
        actions = self._advance(target, message) if target is not None else ()
        if not any(isinstance(action, Receive) for action in actions):
            link.receive(Reception(message, None, lambda _: None, lambda _: None))

    # --- What the machines say --------------------------------------------------------------------------------------

    def _advance(self, target: IncomingHandoff, event: TargetEvent) -> Sequence[Action]:
        """Let the machine take an event and do what it says, which is returned."""
        machine, now, was_over = target.machine, self._turns.clock(), target.machine.is_over
        try:
            actions = machine.advance(event, now)
        except (Internal, ValueError) as error:
            log.exception("handoff of %s, epoch %d, is given up", machine.request_id, machine.epoch)
            self._engine.failed(machine.request_id, machine.epoch, FailureKind.INTERNAL, str(error))
            actions = machine.advance(Cancel(str(error)), now)
        self.meter.note(target, event, actions, was_over=was_over)
        for action in actions:
            self._perform(target, action)
        if not machine.is_over:
            target.alarm.set(machine.next_deadline)
        elif not was_over:
            target.block_ids = None
            target.alarm.cancel()  # its deadlines are void
            target.alarm.set(now + self._limits.announce_s)  # until then it answers late messages
        return actions

    def _perform(self, target: IncomingHandoff, action: Action) -> None:
        request_id, epoch = target.machine.request_id, target.machine.epoch
        match action:
            case Send(message):
                self._send(target, message)
            case Receive():
                self._receive(target, action)
            case CloseLink(_, reason):
                if target.pair is not None and target.pair in self.links:
                    self.links[target.pair].close(reason)
                self._turns.post(partial(self._advance, target, LinkClosed(epoch, reason)))
            case BindBlocks():
                self._engine.bind_blocks(request_id, epoch)
            case Adopt(seal, codec):
                self._engine.adopt(request_id, epoch, seal, codec)
            case Release():
                self._engine.release_target(request_id, epoch)
            case Failed(_, kind, reason):
                self._engine.failed(request_id, epoch, kind, reason)
            case Transmit() | Parked():
                raise AssertionError(f"a target does not ask for {action}")
            case _:
                assert_never(action)

    def _send(self, target: IncomingHandoff, message: Message) -> None:
        pair = target.pair or self._pairs.get(target.source)
        if pair is not None and not pair.is_lost:
            pair.send(message_to_proto(message))
            return
        reason = "the source has not called" if pair is None else pair.lost_reason or ""
        self._turns.post(partial(self._advance, target, PeerLost(message.epoch, reason)))

    def _receive(self, target: IncomingHandoff, action: Receive) -> None:
        machine, span = target.machine, action.span
        assert target.pair is not None

        def on_received(digest_ok: bool) -> None:
            self.meter.num_digest_failures += not digest_ok
            if not action.discard:
                self._advance(target, GroupReceived(action.seq, digest_ok))

        def on_lost(reason: str) -> None:
            self._advance(target, LinkClosed(machine.epoch, reason))

        announced = Next(machine.request_id, machine.epoch, action.seq, span, action.coding)
        block_ids = None
        if not action.discard:
            assert target.block_ids is not None
            block_ids = target.block_ids[span.first_block : span.end_block]
        self.links[target.pair].receive(Reception(announced, block_ids, on_received, on_lost))


def _id(pair: Pair) -> PeerId:
    assert pair.peer is not None
    return (pair.peer.worker_id, pair.peer.incarnation)
