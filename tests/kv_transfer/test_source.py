"""The source's end, step by step: what it says and asks for, in the order of a request's life."""

from dataclasses import replace

import pytest

from twinpool.core.errors import Internal
from twinpool.core.messages import FailureKind
from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coding import RAW, Coding
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Limits, Seal, Started, Stopped
from twinpool.kv_transfer.phases import SourcePhase
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.source import SourceHandoff
from twinpool.model.kv_layout import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, block_tokens=4, head_dim=2, dtype="float32", model="m")
LIMITS = Limits(lease_s=10, park_s=20, announce_s=6, commit_s=5, verify_s=4, stop_s=3, joined_bytes=0)
FIRST, SECOND = Span(0, 2, 0, 2), Span(0, 2, 2, 3)  # 10 tokens: 3 blocks, in two chunks
COMPUTED = (ev.Admitted(), ev.GroupReady(FIRST), ev.GroupReady(SECOND), ev.Computed(7, 2.0))
GRANT = Grant("r", 1, skip_blocks=1, window=1)


def _source(*events, now=0.0):
    source = SourceHandoff("r", 1, 10, LAYOUT, LIMITS)
    for event in events:
        source.advance(event, now)
    return source


def test_a_source_announces_streams_while_it_computes_and_seals_behind_the_last_group():
    source = _source()
    assert source.advance(ev.Admitted(), 0.0) == [ev.Send(Started("r", 1, 10))]
    assert source.advance(GRANT, 1.0) == []
    assert source.advance(ev.GroupReady(FIRST), 1.0) == [ev.Transmit(1, 0, Span(0, 2, 1, 2))]
    assert source.advance(ev.GroupReady(SECOND), 2.0) == []  # the window is full
    assert source.advance(ev.Computed(7, 2.0), 2.0) == []
    assert source.advance(ev.LinkSent(1, 0, 1.0, 2.5), 2.5) == [ev.Transmit(1, 1, SECOND)]
    num_bytes = 4 * LAYOUT.block_layer_bytes
    seal = Seal("r", 1, 10, 2, 7, since_computed_s=1.5, wire_s=2.25, exposed_s=1.25, kv_bytes=num_bytes)
    assert source.advance(ev.LinkSent(1, 1, 2.25, 3.25), 3.5) == [ev.Send(seal)]
    assert source.advance(Committed("r", 1), 4.0) == [ev.Release()]
    assert (source.phase, source.next_deadline, source.is_over) == (SourcePhase.COMMITTED, None, True)


def test_spans_that_wait_side_by_side_leave_as_one_group_of_limited_size():
    together = replace(LIMITS, joined_bytes=4 * LAYOUT.block_layer_bytes)
    source = SourceHandoff("r", 1, 10, LAYOUT, together)
    spans = [Span(0, 1, 0, 2), Span(1, 2, 0, 2), Span(0, 1, 2, 3), Span(1, 2, 2, 3)]
    for event in (ev.Admitted(), *map(ev.GroupReady, spans)):
        source.advance(event, 0.0)
    assert source.advance(Grant("r", 1, 0, 8), 1.0) == [
        ev.Transmit(1, 0, Span(0, 2, 0, 2)),
        ev.Transmit(1, 1, Span(0, 2, 2, 3)),
    ]
    source.advance(ev.Computed(7, 2.0), 2.0)
    source.advance(ev.LinkSent(1, 0, 1.0, 2.5), 2.5)
    (seal,) = source.advance(ev.LinkSent(1, 1, 2.5, 3.0), 3.0)
    assert (seal.message.num_groups, seal.message.kv_bytes) == (2, 6 * LAYOUT.block_layer_bytes)


def test_computed_kv_waits_for_its_grant_as_long_as_the_target_is_heard_of():
    source = _source(*COMPUTED)
    assert source.is_waiting_for_room
    source.advance(ev.Heard(), 9.0)
    assert source.advance(ev.Tick(), 12.0) == [ev.Send(Started("r", 1, 10))]  # again: it may have been lost
    assert source.advance(ev.Tick(), 13.0) == []
    assert source.next_deadline == 14.0
    abort, stopped, parked = source.advance(ev.Tick(), 19.0)
    assert isinstance(abort.message, Abort)
    assert stopped.message == Stopped("r", 1)
    assert parked == ev.Parked(1, "no word from the target for 10 s")


def test_each_epoch_has_its_own_codec_which_every_message_and_size_of_it_follows():
    layout = replace(LAYOUT, num_kv_heads=2, head_dim=32)
    source = SourceHandoff("r", 1, 10, layout, LIMITS, CodecName.INT8)
    assert source.advance(ev.Admitted(), 0.0) == [ev.Send(Started("r", 1, 10, CodecName.INT8))]
    for event in COMPUTED[1:]:
        source.advance(event, 1.0)
    coding = Coding(CodecName.INT8, 10)
    assert source.advance(Grant("r", 1, 0, 1), 1.0) == [ev.Transmit(1, 0, FIRST, coding)]
    assert source.advance(ev.LinkSent(1, 0, 1.0, 2.0), 2.0) == [ev.Transmit(1, 1, SECOND, coding)]
    (seal,) = source.advance(ev.LinkSent(1, 1, 2.0, 3.0), 3.0)
    partial_bytes = 2 * layout.block_layer_bytes
    assert seal.message.kv_bytes == coding.num_bytes(FIRST, layout) + partial_bytes
    source.advance(ev.LinkClosed(1, "broken"), 3.0)
    actions = source.advance(ev.Retarget(2, CodecName.RAW), 3.0)
    assert actions[-1] == ev.Send(Started("r", 2, 10, CodecName.RAW))
    assert source.advance(Grant("r", 2, 0, 1), 3.0) == [ev.Transmit(2, 0, FIRST, RAW)]


def test_a_prefill_that_is_still_queued_takes_the_codec_of_its_newest_target():
    source = _source(ev.Retarget(2, CodecName.INT4))
    assert source.advance(ev.Admitted(), 0.0) == [ev.Send(Started("r", 2, 10, CodecName.INT4))]


def test_messages_of_another_epoch_change_nothing():
    source = _source(*COMPUTED)
    for message in (Grant("r", 0, 0, 1), Grant("r", 2, 0, 1), Abort("r", 2, "old"), Committed("r", 0)):
        assert source.advance(message, 1.0) == []
    assert source.phase is SourcePhase.WAITING


def test_a_second_grant_is_harmless_and_a_senseless_one_parks():
    source = _source(*COMPUTED, GRANT)
    assert source.advance(GRANT, 1.0) == []
    source = _source(*COMPUTED)
    actions = source.advance(Grant("r", 1, skip_blocks=3, window=1), 1.0)
    assert "makes no sense" in actions[0].message.reason
    assert source.phase is SourcePhase.PARKED


def test_an_abort_from_the_target_is_answered_when_the_sends_are_over_and_the_kv_is_kept():
    source = _source(*COMPUTED, GRANT)
    assert source.advance(Abort("r", 1, "no room"), 3.0) == []
    assert source.phase is SourcePhase.STOPPING
    assert source.advance(ev.LinkSent(1, 0, 2.0, 3.0), 3.0) == [ev.Send(Stopped("r", 1)), ev.Parked(1, "no room")]
    assert source.advance(Abort("r", 1, "no room"), 3.0) == [ev.Send(Stopped("r", 1))]


def test_parked_kv_goes_to_another_target_from_its_own_first_block_without_recomputing():
    source = _source(*COMPUTED, GRANT, ev.LinkClosed(1, "broken"))
    assert source.phase is SourcePhase.PARKED
    assert source.advance(ev.Retarget(2), 3.0) == [ev.Send(Started("r", 2, 10))]
    assert source.advance(ev.Retarget(2), 3.0) == []
    assert source.advance(ev.LinkClosed(1, "late"), 3.0) == []
    assert source.advance(Grant("r", 2, 0, 4), 3.0) == [ev.Transmit(2, 0, FIRST), ev.Transmit(2, 1, SECOND)]
    source.advance(ev.LinkSent(2, 0, 3.0, 4.0), 4.0)
    (seal,) = source.advance(ev.LinkSent(2, 1, 3.0, 4.0), 4.0)
    assert (seal.message.epoch, seal.message.num_groups) == (2, 2)
    assert (seal.message.wire_s, seal.message.exposed_s) == (1.0, 1.0)


def test_a_retarget_while_sending_begins_when_the_sends_are_over():
    source = _source(*COMPUTED, GRANT)
    (abort,) = source.advance(ev.Retarget(2), 3.0)
    assert isinstance(abort.message, Abort)
    assert source.advance(ev.LinkSent(1, 0, 2.0, 3.0), 3.0) == [
        ev.Send(Stopped("r", 1)),
        ev.Send(Started("r", 2, 10)),
    ]


def test_a_failure_before_the_next_epoch_begins_is_reported_under_the_epoch_that_the_gateway_waits_for():
    source = _source(*COMPUTED, GRANT, ev.Retarget(2))
    actions = source.advance(Abort("r", 1, "wrong digest", corrupted=True), 3.0)
    assert actions == [ev.Failed(2, FailureKind.CORRUPTED, "wrong digest")]


def test_a_lost_target_closes_the_link_under_outstanding_sends_and_frees_nothing_before():
    source = _source(*COMPUTED, GRANT)
    close, abort = source.advance(ev.PeerLost(1, "gone"), 3.0)
    assert close == ev.CloseLink(1, "gone")
    assert isinstance(abort.message, Abort)
    assert source.next_deadline == 6.0
    assert source.advance(ev.Tick(), 6.0) == [ev.CloseLink(1, "sends still outstanding after 3 s")]
    assert source.advance(ev.LinkClosed(1, "closed"), 7.0) == [ev.Send(Stopped("r", 1)), ev.Parked(1, "gone")]


def test_the_end_of_the_lease_on_parked_kv_releases_it_without_a_word():
    source = _source(*COMPUTED, ev.PeerLost(1, "gone"))
    assert source.next_deadline == 20.0
    assert source.advance(ev.Tick(), 20.0) == [ev.Release()]
    assert not source.can_retarget
    assert source.advance(ev.Retarget(2), 21.0) == []


def test_a_seal_that_nobody_commits_parks():
    source = _source(*COMPUTED, GRANT, ev.LinkSent(1, 0, 0.0, 0.0), ev.LinkSent(1, 1, 0.0, 0.0))
    assert source.phase is SourcePhase.SEALED
    actions = source.advance(ev.Tick(), 5.0)
    assert actions[-1] == ev.Parked(1, "not committed within 5 s")
    assert source.advance(Committed("r", 1), 5.1) == []


@pytest.mark.parametrize("events", [COMPUTED[:1], COMPUTED, (*COMPUTED, ev.PeerLost(1, "gone"))])
def test_cancel_ends_with_no_reference_left(events):
    source = _source(*events)
    actions = source.advance(ev.Cancel("the client left"), 3.0)
    assert actions[-1] == ev.Release()
    assert not any(isinstance(action, ev.Failed | ev.Parked) for action in actions)
    assert source.advance(ev.Cancel("again"), 3.0) == source.advance(ev.GroupReady(FIRST), 3.0) == []


def test_demotion_is_refused_while_bytes_move_and_costs_the_request_no_attempt_otherwise():
    assert _source(*COMPUTED, GRANT).advance(ev.Demote("room"), 3.0) == []
    actions = _source(*COMPUTED).advance(ev.Demote("room"), 3.0)
    assert actions[0] == ev.Failed(1, FailureKind.PREEMPTED, "room")
    assert actions[-1] == ev.Release()


def test_demotion_that_comes_between_two_targets_is_not_forgotten_when_the_sends_are_over():
    """Else the engine would count for ever on blocks that wait for the next target's grant."""
    source = _source(*COMPUTED, GRANT)
    source.advance(ev.Retarget(2), 3.0)
    assert source.phase is SourcePhase.STOPPING
    assert source.advance(ev.Demote("room"), 3.0) == [ev.Failed(2, FailureKind.PREEMPTED, "room")]
    assert source.advance(ev.LinkSent(1, 0, 1.0, 3.5), 3.5) == [ev.Send(Stopped("r", 1)), ev.Release()]
    assert source.is_over


def test_kv_that_arrived_corrupted_is_not_sent_again():
    source = _source(*COMPUTED, GRANT, ev.LinkSent(1, 0, 0.0, 0.0), ev.LinkSent(1, 1, 0.0, 0.0))
    actions = source.advance(Abort("r", 1, "wrong digest", corrupted=True), 1.0)
    assert actions[0] == ev.Failed(1, FailureKind.CORRUPTED, "wrong digest")
    assert actions[-1] == ev.Release()


def test_a_failed_prefill_ends_the_handoff():
    actions = _source(*COMPUTED[:2]).advance(ev.ComputeFailed("out of memory"), 1.0)
    assert actions[0] == ev.Failed(1, FailureKind.INTERNAL, "out of memory")
    assert actions[-1] == ev.Release()


def test_an_engine_that_breaks_the_order_of_events_is_told():
    with pytest.raises(Internal, match="before every span"):
        _source(*COMPUTED[:2]).advance(ev.Computed(7, 0.0), 0.0)
    with pytest.raises(ValueError, match="does not tile"):
        _source(*COMPUTED[:2]).advance(ev.GroupReady(FIRST), 0.0)
    with pytest.raises(Internal, match="waiting -> waiting"):
        _source(ev.Admitted()).advance(ev.Admitted(), 0.0)
