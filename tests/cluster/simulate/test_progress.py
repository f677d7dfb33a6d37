"""The progress bar is for terminals and for runs that take long."""

import io
from typing import Any

from twinpool.cluster.simulate.progress import LOOK_EVERY, RunProgress
from twinpool.core.messages import Goal
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.trace import TraceRequest

OUTCOME = Outcome(0, TraceRequest(0.0, 1, 1), Goal(1.0, 1.0), Ending.COMPLETED, end_s=42.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, seconds: float, num_ended: int = LOOK_EVERY, **options: Any) -> str:
    now = [0.0]
    with RunProgress(stream, clock=lambda: now[0], **options) as progress:
        progress.begin("5 requests/s: ", num_requests=1000)
        now[0] = seconds
        for _ in range(num_ended):
            progress.ended(OUTCOME)
        progress.end()
    return stream.getvalue()


def test_a_long_run_on_a_terminal_shows_how_far_it_is():
    assert f"5 requests/s: {LOOK_EVERY} requests, 42 s simulated" in shown(Terminal(), 3.0)


def test_nothing_is_shown_of_a_short_run_nor_without_a_terminal_nor_unwanted():
    assert shown(Terminal(), 1.0) == ""
    assert shown(io.StringIO(), 3.0) == ""
    assert shown(Terminal(), 3.0, is_wanted=False) == ""
    assert shown(Terminal(), 3.0, num_ended=0) == ""
