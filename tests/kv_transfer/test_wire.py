"""Every message of a handoff survives the wire, and senseless ones are refused."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Message, Next, Seal, Started, Stopped
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.wire import MAX_REQUEST_ID, WireError, message_from_proto, message_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

REQUEST_ID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_REQUEST_ID)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SOME = st.integers(1, 2**32 - 1)
SECONDS = st.floats(0, 1e9)
RANGE = st.tuples(U32, U32).filter(lambda pair: pair[0] < pair[1])
CODECS = st.sampled_from(CodecName)
SPANS = st.builds(lambda layers, blocks: Span(*layers, *blocks), RANGE, RANGE)
MESSAGES = st.one_of(
    st.builds(Started, REQUEST_ID, U32, SOME, CODECS),
    st.builds(Grant, REQUEST_ID, U32, U32, U32),
    st.builds(Next, REQUEST_ID, U32, U64, SPANS, st.builds(Coding.of, CODECS, SOME)),
    st.builds(Seal, REQUEST_ID, U32, SOME, SOME, U32, SECONDS, SECONDS, SECONDS, U64),
    st.builds(Committed, REQUEST_ID, U32),
    st.builds(Abort, REQUEST_ID, U32, st.text(st.characters(exclude_categories=["Cs"]), max_size=500), st.booleans()),
    st.builds(Stopped, REQUEST_ID, U32),
)


@given(MESSAGES)
@settings(max_examples=200)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    data = message_to_proto(message).SerializeToString()
    assert message_from_proto(pb.PeerMessage.FromString(data)) == message


@pytest.mark.parametrize("kind", [Started, Grant, Next, Seal, Committed, Abort, Stopped])
def test_every_field_of_a_message_has_a_place_on_the_wire(kind: type[Message]) -> None:
    ours = {field.name for field in fields(kind)} - {"span", "coding"}
    theirs = {field.name for field in getattr(pb, kind.__name__).DESCRIPTOR.fields}
    spelled_out = {"first_layer", "end_layer", "first_block", "end_block", "codec", "num_tokens"}
    assert theirs == ours | (spelled_out if kind is Next else set())


@pytest.mark.parametrize(
    "envelope",
    [
        pb.PeerMessage(),
        pb.PeerMessage(heartbeat=pb.Heartbeat()),
        pb.PeerMessage(committed=pb.Committed(request_id="")),
        pb.PeerMessage(stopped=pb.Stopped(request_id="x" * (MAX_REQUEST_ID + 1))),
        pb.PeerMessage(started=pb.Started(request_id="r", codec="raw")),
        pb.PeerMessage(started=pb.Started(request_id="r", num_tokens=1)),
        pb.PeerMessage(started=pb.Started(request_id="r", num_tokens=1, codec="zip")),
        pb.PeerMessage(next=pb.Next(request_id="r", end_layer=1, end_block=1)),
        pb.PeerMessage(next=pb.Next(request_id="r", end_layer=1, codec="raw")),
        pb.PeerMessage(next=pb.Next(request_id="r", first_layer=2, end_layer=1, end_block=1, codec="raw")),
        pb.PeerMessage(seal=pb.Seal(request_id="r", num_tokens=1, num_groups=0)),
        pb.PeerMessage(seal=pb.Seal(request_id="r", num_tokens=1, num_groups=1, wire_s=float("inf"))),
        pb.PeerMessage(seal=pb.Seal(request_id="r", num_tokens=1, num_groups=1, exposed_s=-1.0)),
    ],
)
def test_a_message_that_makes_no_sense_is_refused(envelope: pb.PeerMessage) -> None:
    with pytest.raises(WireError):
        message_from_proto(envelope)


def test_a_long_reason_is_cut() -> None:
    message = message_from_proto(message_to_proto(Abort("r", 1, "x" * 10_000)))
    assert isinstance(message, Abort)
    assert len(message.reason) == 500
