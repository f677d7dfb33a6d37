"""Reads off a worker's handoffs, after each thing that happens to one, what they wait for and what they come to.

Changes no handoff, and knows no link and no engine.
"""

from collections.abc import Sequence
from dataclasses import replace

from twinpool.kv_transfer.events import Action, Cancel, Failed, SourceEvent, TargetEvent
from twinpool.kv_transfer.handoff_records import IncomingHandoff, OutgoingHandoff
from twinpool.kv_transfer.metrics import Outcomes, TransferMetrics, Waits
from twinpool.kv_transfer.phases import SourcePhase, TargetPhase

COMMITTED, CANCELLED, LAPSED = "committed", "cancelled", "lapsed"  # or a FailureKind


class SourceMeter:
    """The numbers of all handoffs that a worker is the source of. Used in turns only."""

    def __init__(self) -> None:
        self.num_reopenings = 0  # of links whose pair is lost
        self._parked = Waits()
        self._grants = Waits()
        self._credits = Waits()
        self._outcomes = Outcomes()
        self._failed: dict[OutgoingHandoff, str] = {}
        self._live: dict[OutgoingHandoff, None] = {}

    def note(self, source: OutgoingHandoff, event: SourceEvent, actions: Sequence[Action], now: float) -> None:
        """The handoff has taken an event and said what to do."""
        machine = source.machine
        self._live[source] = None
        self._parked.note(source, machine.is_waiting_for_room, now)
        self._grants.note(source, machine.is_waiting_for_room and machine.phase is SourcePhase.WAITING, now)
        self._credits.note(source, machine.is_waiting_for_credit, now)
        for action in actions:
            if isinstance(action, Failed):
                self._failed[source] = str(action.kind)
        if isinstance(event, Cancel):
            self._failed.setdefault(source, CANCELLED)
        if machine.is_over:
            del self._live[source]
            ended = self._failed.pop(source, LAPSED)
            self._outcomes.add(COMMITTED if machine.phase is SourcePhase.COMMITTED else ended)

    def metrics(self, now: float) -> TransferMetrics:
        """The source's part of a worker's metrics."""
        parked = [owner for owner in self._live if owner.machine.is_waiting_for_room]
        return TransferMetrics(
            parked_handoffs=len(parked),
            parked_blocks=sum(len(source.block_ids) for source in parked),
            oldest_parked_s=self._parked.oldest_s(now),
            grant_waits=self._grants.num_waits,
            grant_wait_s=self._grants.total_s(now),
            grant_cause=_grant_cause(parked),
            credit_waits=self._credits.num_waits,
            credit_wait_s=self._credits.total_s(now),
            oldest_lease_s=max((source.machine.silence_s(now) for source in self._live), default=0.0),
            link_reopenings=self.num_reopenings,
            outgoing=self._outcomes.counts(),
        )


class TargetMeter:
    """The numbers of all handoffs that a worker is the target of. Used in turns only."""

    def __init__(self) -> None:
        self.num_digest_failures = 0
        self._outcomes = Outcomes()
        self._failed: dict[IncomingHandoff, str] = {}
        self._live: dict[IncomingHandoff, None] = {}

    def note(self, target: IncomingHandoff, event: TargetEvent, actions: Sequence[Action], *, was_over: bool) -> None:
        """The handoff has taken an event and said what to do. One that is over still hears of late messages."""
        machine = target.machine
        if was_over:
            return
        self._live[target] = None
        for action in actions:
            if isinstance(action, Failed):
                self._failed[target] = str(action.kind)
        if machine.is_over:
            del self._live[target]
            ended = self._failed.pop(target, CANCELLED if isinstance(event, Cancel) else LAPSED)
            self._outcomes.add(COMMITTED if machine.phase is TargetPhase.COMMITTED else ended)

    def add_to(self, metrics: TransferMetrics, now: float) -> TransferMetrics:
        """A worker's metrics, with the target's part."""
        silence_s = max((target.machine.silence_s(now) for target in self._live), default=0.0)
        return replace(
            metrics,
            room_waiting=sum(target.machine.phase is TargetPhase.WANTING for target in self._live),
            oldest_lease_s=max(metrics.oldest_lease_s, silence_s),
            digest_failures=self.num_digest_failures,
            incoming=self._outcomes.counts(),
        )


def _grant_cause(parked: Sequence[OutgoingHandoff]) -> str:
    """Why the oldest of these waits. In order of admission, so the first one is the oldest."""
    if not parked:
        return ""
    machine, targets = parked[0].machine, parked[0].targets
    if machine.phase is SourcePhase.PARKED:
        return "the target was lost; no other one is named yet"
    pair = targets[machine.epoch]
    return f"{pair.name} has not {'answered' if pair.peer_offer is None else 'granted blocks'} yet"
