"""What modelled workers and a modelled gateway keep of a handoff: its ends, its target worker's pool, its call.

State with no policy; handoff_cluster.py moves it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twinpool.kv_transfer import events as ev
from twinpool.simulator.world import Timer, World

ROUNDING_S = 1e-6  # over what a time loses on its way from one clock to another: a tick that is early changes nothing


@dataclass(eq=False)
class End:
    """One end of one handoff on its worker: the machine, its timer, and what it holds."""

    world: World
    machine: Any  # SourceHandoff | TargetHandoff
    perform: Callable[["End", ev.Action], None]
    num_tokens: int = 0
    holds_blocks: bool = False
    skip_blocks: int = 0
    written: set[tuple[int, int]] = field(default_factory=set)
    num_releases: int = 0
    timer: Timer | None = None
    is_dead: bool = False  # with its worker
    life: int = 0  # of the source worker that it belongs to, or expects
    clock_s: float = 0.0  # its worker's clock, less the world's: no two workers agree on the time

    def tell(self, event: Any) -> None:
        """Let the machine take an event; perform what it asks; set the timer anew."""
        if self.is_dead:
            return
        for action in self.machine.advance(event, self.world.now + self.clock_s):
            self.perform(self, action)
        deadline = self.machine.next_deadline
        if self.timer is not None:
            self.timer.cancel()
        self.timer = (
            None
            if deadline is None
            else self.world.at(deadline - self.clock_s + ROUNDING_S, lambda: self.tell(ev.Tick()))
        )

    def soon(self, event: Any, delay_s: float = 0.01) -> None:
        """Tell it, but not from within what it asked for."""
        self.world.after(delay_s, lambda: self.tell(event))


@dataclass(eq=False)
class Target:
    """A target worker: a pool that binds first come, first served, and sequences that end after a while."""

    name: str
    free_blocks: int
    clock_s: float = 0.0  # see End
    is_alive: bool = True
    ends: dict[tuple[str, int], End] = field(default_factory=dict)
    waiting: list[End] = field(default_factory=list)

    def live_ends(self) -> list[End]:
        """Ends that something can still happen to."""
        return [end for end in self.ends.values() if not (end.is_dead or end.machine.is_over)]


@dataclass(eq=False)
class Call:
    """One request as the gateway sees it; ``outcome`` is set once."""

    request_id: str
    num_tokens: int
    epoch: int = 0
    target: str = ""
    outcome: str = ""
