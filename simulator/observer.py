"""What a simulated cluster tells those who watch it. Watching changes nothing: observers get values and keep their own.

A contract, and the observer that does nothing.
"""

from typing import NamedTuple

from twinpool.simulator.outcome import Outcome


class Steps(NamedTuple):
    """Engine steps of one worker, one after another, whose decision stayed the same.

    Where ``prefill_tokens`` is over 0, ``num_steps`` is 1. Several took about equally long. With ``num_steps`` 0 it is
    a step that its worker's end broke off, of which nothing came; what it had run before is told then, too, and late.
    """

    worker: int  # place in Scenario.workers
    started_s: float
    ended_s: float
    num_steps: int
    prefill_tokens: int
    num_prompts: int  # whose chunks these were
    batch: int  # sequences that decoded in each step
    context_tokens: int  # of those, when the first step began
    held_blocks: int  # of the worker's pool, cached ones that nobody uses left out; 0 from where its process ended


class Transfer(NamedTuple):
    """One handoff's bytes on the wire."""

    index: int  # type: ignore[assignment]  # of the request; nobody searches a transfer for a value
    source: int
    target: int
    started_s: float
    ended_s: float
    num_bytes: int
    wire_s: float  # that bytes were moving, or their last were under way: pauses between chunks left out
    exposed_s: float  # of wire_s, after its prefill ended


class Gauge(NamedTuple):
    """How much waits. One of ``num`` stands for as many, a second apart, up to ``at_s``: nothing waited meanwhile."""

    at_s: float
    held: int  # requests in the routers' queues
    in_flight: int  # requests placed and not ended
    waiting_prefill_tokens: int  # on all workers
    free_blocks: int
    num: int = 1


class Observer:
    """Does nothing; subclasses override what they care for. Calls come in order of virtual time."""

    def offered(self, index: int, at_s: float) -> None:
        """A request came."""

    def stepped(self, steps: Steps) -> None:
        """A worker ran steps."""

    def transferred(self, transfer: Transfer) -> None:
        """A handoff's bytes arrived."""

    def gauged(self, gauge: Gauge) -> None:
        """For each virtual second; at once for all of a time in which there was no request."""

    def happened(self, at_s: float, worker: int, what: str) -> None:
        """A worker changed: `crashed`, `restarted`, `draining`, `role decode`, `slow 2.0`, ..."""

    def ended(self, outcome: Outcome) -> None:
        """A request ended; exactly once for each that was offered."""
