"""The world of two workers and one link between them in which conformance.py's checks run, and what a check is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twinpool.kv_transfer.plan import Span

from .conformance_kinds import LinkKind
from .conformance_worker import Event

WHOLE = Span(0, 3, 0, 6)
NUM_BLOCKS = 32
HERE, THERE = [9, 3, 4, 0, 7, 30], [1, 2, 5, 8, 20, 11]
PATIENT_S = 20.0  # far over what anything takes
HASTY_S = 0.5  # where the deadline passes
CALM_S = 1.5  # where it passes, and something else must not miss it


@dataclass
class World:
    """A source and a target worker (LocalWorker or RemoteWorker, hence Any), and how to get another of either."""

    kind: LinkKind
    source: Any
    target: Any
    replace: Callable[[str], Any]

    def open(self) -> "Opened":
        end, ticket = self.target.listen()
        opened = Opened(self.source, self.target, self.source.dial(ticket), end)
        assert opened.sent() == opened.received() == ("open",)
        return opened

    def bystanders(self, named: list[int], *, damaged: bool = False) -> str:
        """Fingerprint of the target's blocks that a group which fails must leave as they were."""
        writes_early = self.kind.writes_before_header or (damaged and self.kind.writes_before_digest)
        blocks = [block for block in range(NUM_BLOCKS) if not (writes_early and block in named)]
        found: str = self.target.fingerprint(blocks, WHOLE)
        return found

    def has_arrived(self, span: Span = WHOLE) -> bool:
        there: str = self.target.fingerprint(THERE, span)
        return there == self.source.fingerprint(HERE, span)


@dataclass
class Opened:
    """A link, by the numbers of its ends."""

    source: Any
    target: Any
    source_end: int
    target_end: int

    def send(self, seq: int, *group: Any) -> None:
        self.source.send(self.source_end, seq, *group)

    def receive(self, seq: int, *group: Any) -> None:
        self.target.receive(self.target_end, seq, *group)

    def sent(self) -> Event:
        event: Event = self.source.next(self.source_end)
        return event

    def received(self) -> Event:
        event: Event = self.target.next(self.target_end)
        return event

    def move(self, seq: int = 0) -> None:
        """A whole group goes through."""
        self.receive(seq, WHOLE, THERE)
        self.send(seq, WHOLE, HERE)
        assert self.sent() == ("sent", seq)
        assert self.received() == ("received", seq, True)

    def close(self) -> None:
        self.source.close(self.source_end)
        self.target.close(self.target_end)
        assert self.source.join(self.source_end)
        assert self.target.join(self.target_end)


@dataclass(frozen=True)
class Check:
    """One rule, and the world that it is checked in."""

    run: Callable[[World], None]
    open_timeout_s: float
    chunk_timeout_s: float
    apart: tuple[str, ...]  # which workers need a process of their own, for they may die

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def waits(self) -> bool:
        """Whether a deadline passes in it."""
        return min(self.open_timeout_s, self.chunk_timeout_s) < PATIENT_S


class Checks(list[Check]):
    """Checks in the order of their definition."""

    def add(self, *, open_s: float = PATIENT_S, chunk_s: float = PATIENT_S, apart: tuple[str, ...] = ()) -> Any:
        """Take a function as a check; times are deadlines of the links in its world."""

        def add(run: Callable[[World], None]) -> Callable[[World], None]:
            self.append(Check(run, open_s, chunk_s, apart))
            return run

        return add
