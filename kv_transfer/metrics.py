"""What a worker's handoffs wait for and come to, in numbers: one frozen value, and the counters behind it.

Pure: time is an argument. Knows no handoff, no link and nobody who reads it.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class TransferMetrics:
    """A worker's handoffs at one moment, and since it started. Waits count while they last."""

    parked_handoffs: int = 0  # source: all computed, and nothing of it moves
    parked_blocks: int = 0  # they hold
    oldest_parked_s: float = 0.0  # how long the oldest of them has been kept
    grant_waits: int = 0  # source: handoffs that were computed before their target had room, so far
    grant_wait_s: float = 0.0  # all of them together
    grant_cause: str = ""  # why the oldest one of now waits; empty: none does
    credit_waits: int = 0  # source: times that a group was ready and the target's window full, so far
    credit_wait_s: float = 0.0
    room_waiting: int = 0  # target: handoffs that wait for blocks now
    oldest_lease_s: float = 0.0  # either: how long ago the peer that was silent for longest was heard
    link_reopenings: int = 0  # source: links that were opened again, so far
    digest_failures: int = 0  # target: groups that came damaged, so far
    outgoing: Mapping[str, int] = field(default_factory=dict)  # source: handoffs that are over, by outcome
    incoming: Mapping[str, int] = field(default_factory=dict)  # target: likewise


class Waits:
    """Counts waits of one sort, and the time they take. Each wait has an owner, who waits for one thing at a time."""

    def __init__(self) -> None:
        self.num_waits = 0
        self._ended_s = 0.0
        self._since: dict[Hashable, float] = {}  # in the order in which they began

    def note(self, owner: Hashable, is_waiting: bool, now: float) -> None:
        """Say whether the owner waits now; to say it again changes nothing."""
        if is_waiting and owner not in self._since:
            self._since[owner] = now
            self.num_waits += 1
        elif not is_waiting and owner in self._since:
            self._ended_s += now - self._since.pop(owner)

    def total_s(self, now: float) -> float:
        """Seconds that all waits took, those under way included."""
        return self._ended_s + sum(now - since for since in self._since.values())

    def oldest_s(self, now: float) -> float:
        """How long the longest of now has lasted; 0 when nobody waits."""
        return now - next(iter(self._since.values())) if self._since else 0.0


class Outcomes:
    """Counts what handoffs came to, each once."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, outcome: str) -> None:
        """One more came to this."""
        self._counts[outcome] += 1

    def counts(self) -> Mapping[str, int]:
        """By outcome; a copy that stays as it is."""
        return MappingProxyType(dict(sorted(self._counts.items())))
