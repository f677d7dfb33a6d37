"""Turns the messages of a handoff into protobuf and back, checking what a peer sent.

Knows no stream and no state.
"""

import math
from typing import assert_never

from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Message, Next, Seal, Started, Stopped
from twinpool.kv_transfer.plan import Span
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

MAX_REQUEST_ID = 256
_MAX_REASON = 500


class WireError(Exception):
    """A peer sent what no worker of this version sends."""


def message_to_proto(message: Message) -> pb.PeerMessage:
    """Return the envelope that carries ``message``."""
    request_id, epoch = message.request_id, message.epoch
    match message:
        case Started(num_tokens=num_tokens, codec=codec):
            started = pb.Started(request_id=request_id, epoch=epoch, num_tokens=num_tokens, codec=codec)
            return pb.PeerMessage(started=started)
        case Grant(skip_blocks=skip_blocks, window=window):
            grant = pb.Grant(request_id=request_id, epoch=epoch, skip_blocks=skip_blocks, window=window)
            return pb.PeerMessage(grant=grant)
        case Next():
            return pb.PeerMessage(next=_next_to_proto(message))
        case Seal():
            return pb.PeerMessage(seal=_seal_to_proto(message))
        case Committed():
            return pb.PeerMessage(committed=pb.Committed(request_id=request_id, epoch=epoch))
        case Abort(reason=reason, corrupted=corrupted):
            abort = pb.Abort(request_id=request_id, epoch=epoch, reason=reason[:_MAX_REASON], corrupted=corrupted)
            return pb.PeerMessage(abort=abort)
        case Stopped():
            return pb.PeerMessage(stopped=pb.Stopped(request_id=request_id, epoch=epoch))
        case _:
            assert_never(message)


def message_from_proto(envelope: pb.PeerMessage) -> Message:
    """Return the handoff's message in an envelope.

    Raises:
        WireError: it carries none, or a field that makes no sense whatever the state.
    """
    kind = envelope.WhichOneof("kind")
    match kind:
        case "started":
            return _started_from_proto(envelope.started)
        case "grant":
            grant = envelope.grant
            return Grant(_request_id(grant.request_id), grant.epoch, grant.skip_blocks, grant.window)
        case "next":
            return _next_from_proto(envelope.next)
        case "seal":
            return _seal_from_proto(envelope.seal)
        case "committed":
            return Committed(_request_id(envelope.committed.request_id), envelope.committed.epoch)
        case "abort":
            abort = envelope.abort
            return Abort(_request_id(abort.request_id), abort.epoch, abort.reason[:_MAX_REASON], abort.corrupted)
        case "stopped":
            return Stopped(_request_id(envelope.stopped.request_id), envelope.stopped.epoch)
        case _:
            raise WireError(f"a message of kind {kind or 'unknown'} belongs to no handoff")


def _started_from_proto(message: pb.Started) -> Started:
    num_tokens = _positive("num_tokens", message.num_tokens)
    return Started(_request_id(message.request_id), message.epoch, num_tokens, _codec(message.codec))


def _next_to_proto(message: Next) -> pb.Next:
    span = message.span
    return pb.Next(
        request_id=message.request_id,
        epoch=message.epoch,
        seq=message.seq,
        first_layer=span.first_layer,
        end_layer=span.end_layer,
        first_block=span.first_block,
        end_block=span.end_block,
        codec=message.coding.codec,
        num_tokens=message.coding.num_tokens,
    )


def _next_from_proto(message: pb.Next) -> Next:
    span = Span(message.first_layer, message.end_layer, message.first_block, message.end_block)
    if span.num_layers < 1 or span.num_blocks < 1:
        raise WireError(f"an empty group was announced: {span}")
    coding = Coding.of(_codec(message.codec), message.num_tokens)
    return Next(_request_id(message.request_id), message.epoch, message.seq, span, coding)


def _seal_to_proto(message: Seal) -> pb.Seal:
    return pb.Seal(
        request_id=message.request_id,
        epoch=message.epoch,
        num_tokens=message.num_tokens,
        num_groups=message.num_groups,
        first_token=message.first_token,
        since_computed_s=message.since_computed_s,
        wire_s=message.wire_s,
        exposed_s=message.exposed_s,
        kv_bytes=message.kv_bytes,
    )


def _seal_from_proto(message: pb.Seal) -> Seal:
    return Seal(
        _request_id(message.request_id),
        message.epoch,
        num_tokens=_positive("num_tokens", message.num_tokens),
        num_groups=_positive("num_groups", message.num_groups),
        first_token=message.first_token,
        since_computed_s=_duration("since_computed_s", message.since_computed_s),
        wire_s=_duration("wire_s", message.wire_s),
        exposed_s=_duration("exposed_s", message.exposed_s),
        kv_bytes=message.kv_bytes,
    )


def _request_id(request_id: str) -> str:
    if not 0 < len(request_id) <= MAX_REQUEST_ID:
        raise WireError(f"a request id of {len(request_id)} characters")
    return request_id


def _codec(name: str) -> CodecName:
    try:
        return CodecName(name)
    except ValueError:
        raise WireError(f"no codec of this version: {name[:20]!r}") from None


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise WireError(f"{name} is {number}")
    return number


def _duration(name: str, seconds: float) -> float:
    if not math.isfinite(seconds) or seconds < 0:
        raise WireError(f"{name} is {seconds} s")
    return seconds
