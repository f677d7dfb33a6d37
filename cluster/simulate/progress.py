"""A progress bar for simulated runs that take long, on a terminal.

Knows how many requests came and ended; nothing of how they fared. Reads the wall clock, which the run itself does not.
"""

import math
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
        self._num_requests: int | None = None
        self._duration_s = math.inf
        self._ended = 0
        self._is_started = False

    def begin(self, label: str, num_requests: int | None = None, duration_s: float = math.inf) -> None:
        """A run begins: of so many requests, or of so many seconds, where either is known."""
        self._label, self._ended = label, 0
        self._num_requests, self._duration_s = num_requests, duration_s

    def ended(self, outcome: Outcome) -> None:
        self._ended += 1
        if self._is_shown and self._ended % LOOK_EVERY == 0 and self._clock() - self._begun_s > SHOWN_AFTER_S:
            self._show(outcome.end_s)

    def _show(self, now_s: float) -> None:
        if not self._is_started:
            self._is_started = True
            self._bar.start()
        told = f"{self._label}{self._ended:,} requests, {now_s:,.0f} s simulated"
        if self._num_requests is not None:
            self._bar.update(self._task, description=told, completed=self._ended, total=self._num_requests)
        else:
            total = self._duration_s if math.isfinite(self._duration_s) else None
            self._bar.update(self._task, description=told, completed=now_s, total=total)

    def end(self) -> None:
        """Take the bar away, before anything else is printed. Idempotent."""
        if self._is_started:
            self._is_started = False
            self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
