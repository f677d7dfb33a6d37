"""A progress bar for simulated runs that take long, on a terminal.

Knows how many requests came and ended; nothing of how they fared. Reads the wall clock, which the run itself does not.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from twinpool.simulator.observer import Observer
from twinpool.simulator.outcome import Outcome

SHOWN_AFTER_S = 2.0
LOOK_EVERY = 256  # requests


class RunProgress(Observer):
    """Shows how far runs are, from two seconds on; nothing if the stream is no terminal or ``is_wanted`` is false."""

    def __init__(self, stream: IO[str], *, is_wanted: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_shown = is_wanted and stream.isatty()
        self._clock = clock
        self._begun_s = clock()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(file=stream), transient=True)
        self._task = self._bar.add_task("", total=None)
        self._label = ""
        self._total: int | None = None
        self._ended = 0

    def begin(self, label: str, total: int | None) -> None:
        """A run begins; ``total`` is how many requests it will have, where that is known."""
        self._label, self._total, self._ended = label, total, 0

    def ended(self, outcome: Outcome) -> None:
        self._ended += 1
        if self._is_shown and self._ended % LOOK_EVERY == 0 and self._clock() - self._begun_s > SHOWN_AFTER_S:
            self._bar.start()
            told = f"{self._label}{self._ended:,} requests, {outcome.end_s:,.0f} s simulated"
            self._bar.update(self._task, description=told, completed=self._ended, total=self._total)

    def end(self) -> None:
        """Take the bar away, before anything else is printed. Idempotent."""
        self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
