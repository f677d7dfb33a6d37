"""What a simulated worker says to gateways: the messages between simulator/worker.py and simulator/gateway.py.

Values only.
"""

from dataclasses import dataclass

from twinpool.core.messages import FailureKind
from twinpool.router.views import WorkerLoad
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.observer import Transfer
from twinpool.simulator.prefixes import CacheWord


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A prefill has given its token."""

    attempt: Attempt
    queued_s: float
    prefill_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A handoff's sequence has joined the decode batch."""

    attempt: Attempt
    handoff_s: float
    wire_s: float
    transfer: Transfer


@dataclass(slots=True)
class News:
    """What a worker has to say to gateways at one moment; the load is for all of them."""

    firsts: list[FirstToken]
    arrivals: list[Arrival]
    said: list[tuple[Attempt, int]]  # tokens of the whole answer said by now, of answers that end or break off here
    failures: list[tuple[Attempt, FailureKind]]
    load: WorkerLoad | None = None
    cache: CacheWord | None = None
