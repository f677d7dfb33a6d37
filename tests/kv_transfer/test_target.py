"""The target's end, step by step: what it says and asks for, in the order of a request's life."""

from dataclasses import replace

import pytest

from twinpool.core.errors import Internal
from twinpool.core.messages import FailureKind
from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Limits, Next, Seal, Started, Stopped
from twinpool.kv_transfer.phases import TargetPhase
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.model.kv_layout import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, block_tokens=4, head_dim=2, dtype="float32", model="m")
LIMITS = Limits(lease_s=10, park_s=20, announce_s=6, commit_s=5, verify_s=4, stop_s=3)
GRANTED = (ev.Reserve(10), Started("r", 1, 10), ev.Bound(1))  # 10 tokens: 3 blocks, the first one held
SEAL = Seal("r", 1, 10, 1, 7, 0.0, 0.0, 0.0, 128)


def _target(*events, now=0.0):
    target = TargetHandoff("r", 1, LAYOUT, 2, LIMITS)
    for event in events:
        target.advance(event, now)
    return target


INT8 = Coding(CodecName.INT8, 10)


def _coded_target(*events, codecs=(CodecName.RAW, CodecName.INT8)):
    target = TargetHandoff("r", 1, LAYOUT, 2, LIMITS, codecs)
    for event in events:
        target.advance(event, 0.0)
    return target


def test_a_target_receives_as_the_source_codes_and_says_what_its_blocks_came_through():
    target = _coded_target(ev.Reserve(10), Started("r", 1, 10, CodecName.INT8), ev.Bound(1))
    span = Span(0, 2, 1, 3)
    assert target.advance(Next("r", 1, 5, span, INT8), 1.0) == [ev.Receive(5, span, coding=INT8)]
    target.advance(SEAL, 1.0)
    assert target.advance(ev.GroupReceived(5, True), 2.0)[0] == ev.Adopt(SEAL, CodecName.INT8)


@pytest.mark.parametrize("is_order_first", [True, False])
@pytest.mark.parametrize(
    ("order", "codecs", "reason"),
    [
        (ev.Reserve(10), (CodecName.RAW, CodecName.FP8), "this worker takes raw, fp8"),
        (ev.Reserve(10, allows_loss=False), (CodecName.RAW, CodecName.INT8), "allows no loss"),
    ],
)
def test_kv_in_a_codec_that_may_not_be_is_refused_before_any_block_is_bound(is_order_first, order, codecs, reason):
    events = [order, Started("r", 1, 10, CodecName.INT8)]
    first, then = events if is_order_first else reversed(events)
    failed, abort, release = _coded_target(first, codecs=codecs).advance(then, 1.0)
    assert (failed.kind, release) == (FailureKind.INTERNAL, ev.Release())
    assert reason in failed.reason
    assert abort.message.reason == failed.reason


@pytest.mark.parametrize("coding", [Coding(), Coding(CodecName.INT4, 10), Coding(CodecName.INT8, 9)])
def test_a_group_that_is_not_coded_as_the_handoff_ends_it_and_the_link(coding):
    target = _coded_target(ev.Reserve(10), Started("r", 1, 10, CodecName.INT8), ev.Bound(0))
    close, failed, abort = target.advance(Next("r", 1, 0, Span(0, 2, 0, 2), coding), 1.0)
    assert isinstance(close, ev.CloseLink)
    assert (failed.kind, abort.message.reason) == (FailureKind.TRANSFER_FAILED, failed.reason)
    assert target.phase is TargetPhase.DRAINING


def test_a_group_of_a_handoff_that_was_given_up_is_thrown_away_as_it_is_coded():
    target = _coded_target(ev.Reserve(10), Started("r", 1, 10, CodecName.INT8), ev.Bound(0), ev.Cancel("enough"))
    span = Span(0, 2, 0, 2)
    assert target.advance(Next("r", 1, 0, span, INT8), 1.0) == [ev.Receive(0, span, discard=True, coding=INT8)]


def test_messages_of_another_epoch_change_nothing():
    target = _target(*GRANTED)
    for message in (Next("r", 2, 0, Span(0, 2, 2, 3)), Abort("r", 0, "old"), Stopped("r", 0), replace(SEAL, epoch=2)):
        assert target.advance(message, 1.0) == []
    assert target.phase is TargetPhase.RECEIVING


def test_a_source_that_asks_again_is_granted_again_until_it_sends():
    target = _target(*GRANTED)
    assert target.advance(GRANTED[1], 1.0) == [ev.Send(Grant("r", 1, 1, 2))]
    target.advance(Next("r", 1, 0, Span(0, 2, 1, 2)), 1.0)
    assert target.advance(GRANTED[1], 1.0) == []
    assert _target(*GRANTED[:2]).advance(GRANTED[1], 1.0) == []


@pytest.mark.parametrize("events", [GRANTED[:2], (GRANTED[1], GRANTED[0])])
def test_a_target_wants_blocks_when_both_the_order_and_the_source_have_come(events):
    target = _target(events[0])
    assert target.advance(events[1], 1.0) == [ev.BindBlocks(3)]
    assert target.advance(ev.Bound(1), 2.0) == [ev.Send(Grant("r", 1, 1, 2))]


def test_a_target_adopts_when_the_seal_and_every_group_are_there_in_either_order():
    target = _target(*GRANTED)
    span = Span(0, 2, 1, 3)
    assert target.advance(Next("r", 1, 5, span), 1.0) == [ev.Receive(5, span)]
    assert target.advance(Next("r", 1, 5, span), 1.0) == []
    assert target.advance(SEAL, 1.0) == []
    assert target.advance(ev.GroupReceived(5, True), 2.0) == [ev.Adopt(SEAL), ev.Send(Committed("r", 1))]
    for late in (SEAL, Abort("r", 1, "late"), Stopped("r", 1), ev.Cancel("late"), ev.PeerLost(1, "late"), ev.Tick()):
        assert target.advance(late, 99.0) == []


def test_a_seal_over_holes_is_refused():
    target = _target(*GRANTED, Next("r", 1, 0, Span(0, 2, 1, 2)), ev.GroupReceived(0, True))
    failed, abort = target.advance(SEAL, 1.0)
    assert failed.kind is FailureKind.TRANSFER_FAILED
    assert "do not make the whole" in abort.message.reason


def test_a_seal_that_overtakes_its_groups_waits_for_them_and_one_that_counts_too_few_is_refused():
    target = _target(*GRANTED, SEAL)
    assert target.phase is TargetPhase.VERIFYING
    target.advance(Next("r", 1, 0, Span(0, 2, 1, 3)), 1.0)
    assert target.advance(ev.GroupReceived(0, True), 1.0)[0] == ev.Adopt(SEAL)
    target = _target(*GRANTED, Next("r", 1, 0, Span(0, 2, 1, 2)), Next("r", 1, 1, Span(0, 2, 2, 3)))
    target.advance(ev.GroupReceived(0, True), 1.0)
    assert target.advance(SEAL, 1.0) == []
    assert isinstance(target.advance(ev.GroupReceived(1, True), 1.0)[0], ev.Failed)


def test_the_end_of_a_receive_that_was_never_posted_counts_for_nothing():
    target = _target(*GRANTED, ev.GroupReceived(4, True), Next("r", 1, 0, Span(0, 2, 1, 3)), SEAL)
    assert target.phase is TargetPhase.VERIFYING
    assert target.advance(ev.GroupReceived(0, True), 1.0)[0] == ev.Adopt(SEAL)


def test_a_wrong_digest_is_never_adopted_and_blocks_stay_until_the_source_has_stopped():
    target = _target(*GRANTED, Next("r", 1, 0, Span(0, 2, 1, 3)), SEAL)
    failed, abort = target.advance(ev.GroupReceived(0, False), 1.0)
    assert failed.kind is FailureKind.CORRUPTED
    assert abort.message.corrupted
    assert target.phase is TargetPhase.DRAINING
    assert target.advance(Stopped("r", 1), 2.0) == [ev.Release()]


def test_a_draining_target_waits_for_its_own_receives_too_and_discards_what_still_comes():
    target = _target(*GRANTED, Next("r", 1, 0, Span(0, 1, 1, 3)))
    target.advance(ev.Cancel("the client left"), 1.0)
    late = Span(1, 2, 1, 3)
    assert target.advance(Next("r", 1, 1, late), 1.0) == [ev.Receive(1, late, discard=True)]
    assert target.advance(Stopped("r", 1), 2.0) == []
    assert target.advance(ev.GroupReceived(0, True), 2.0) == [ev.Release()]


def test_a_source_that_does_not_stop_loses_its_link():
    target = _target(*GRANTED, ev.Cancel("the client left"))
    assert target.advance(ev.Tick(), 3.0) == [ev.CloseLink(1, "the source has not stopped within 3 s")]
    assert target.next_deadline == 6.0
    assert target.advance(ev.LinkClosed(1, "closed"), 3.1) == [ev.Release()]


def test_a_link_that_breaks_under_a_grant_fails_the_epoch_and_frees_at_once():
    failed, abort, release = _target(*GRANTED).advance(ev.LinkClosed(1, "broken"), 1.0)
    assert (failed.kind, release) == (FailureKind.TRANSFER_FAILED, ev.Release())
    assert isinstance(abort.message, Abort)


def test_a_link_that_breaks_before_the_grant_does_not_stand_for_the_next_one():
    target = _target(*GRANTED[:2])
    assert target.advance(ev.LinkClosed(1, "broken"), 1.0) == []
    target.advance(ev.Bound(1), 2.0)
    assert not any(isinstance(action, ev.Release) for action in target.advance(ev.Cancel("the client left"), 3.0))


@pytest.mark.parametrize("span", [Span(0, 2, 0, 3), Span(0, 3, 1, 3), Span(0, 2, 1, 4), Span(0, 0, 1, 3)])
def test_a_span_that_was_not_asked_for_is_never_received(span):
    actions = _target(*GRANTED).advance(Next("r", 1, 0, span), 1.0)
    assert isinstance(actions[0], ev.CloseLink)
    assert not any(isinstance(action, ev.Receive) for action in actions)


def test_a_span_sent_twice_is_received_into_scratch_and_fails_the_epoch():
    span = Span(0, 2, 1, 2)
    actions = _target(*GRANTED, Next("r", 1, 0, span)).advance(Next("r", 1, 1, span), 1.0)
    assert actions[0] == ev.Receive(1, span, discard=True)
    assert actions[1].kind is FailureKind.TRANSFER_FAILED


def test_the_target_reports_what_it_decides_and_leaves_the_rest_to_who_decided():
    assert _target(*GRANTED).advance(ev.PeerLost(1, "gone"), 1.0)[1] == ev.Failed(1, FailureKind.PEER_LOST, "gone")
    assert _target(*GRANTED).advance(Abort("r", 1, "theirs"), 1.0) == []
    assert _target(GRANTED[0]).advance(Abort("r", 1, "theirs"), 1.0) == [ev.Release()]


def test_an_order_and_a_source_that_disagree_on_the_length_never_meet():
    failed, abort, _ = _target(ev.Reserve(10)).advance(Started("r", 1, 11), 1.0)
    assert failed.kind is FailureKind.INTERNAL
    assert "11 tokens" in abort.message.reason


def test_a_source_without_an_order_is_turned_away_in_time():
    target = _target(Started("r", 1, 10))
    assert target.next_deadline == 6.0
    abort, release = target.advance(ev.Tick(), 6.0)
    assert "no order" in abort.message.reason
    assert release == ev.Release()


def test_groups_that_do_not_follow_their_seal_in_time_fail_the_epoch():
    target = _target(*GRANTED, Next("r", 1, 0, Span(0, 2, 1, 3)), SEAL)
    failed, _ = target.advance(ev.Tick(), 4.0)
    assert failed.reason == "groups missing 4 s after the seal"


def test_an_ended_target_turns_late_messages_away():
    target = _target(GRANTED[0], ev.Cancel("the client left"))
    for message in (Started("r", 1, 10), SEAL):
        (send,) = target.advance(message, 1.0)
        assert isinstance(send.message, Abort)
    assert target.advance(ev.Bound(0), 1.0) == []
    assert target.advance(ev.Reserve(10), 1.0) == []


def test_binding_that_skips_the_last_block_is_a_bug_of_ours():
    with pytest.raises(Internal, match="3 blocks to skip"):
        _target(*GRANTED[:2]).advance(ev.Bound(3), 1.0)
    with pytest.raises(Internal, match="reserved -> receiving"):
        _target(GRANTED[0]).advance(ev.Bound(0), 1.0)
