"""SIGINT and SIGTERM while a batch runs: they end what may be ended now, and are noted otherwise.

Knows signals, not batches. For the main thread, where alone Python hears signals.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

HEARD = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """Raised in the midst of whatever runs, like KeyboardInterrupt, by ``StopSignals.raising``."""


class StopSignals:
    """Owns the handlers from entering to leaving. ``heard`` is the name of a signal that came, or empty."""

    def __init__(self) -> None:
        self.heard = ""
        self._end: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in HEARD}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """Call ``end``, once, for a signal that comes during the block or came before it."""
        self._end = end
        try:
            if self.heard:
                self._end_now()
            yield
        finally:
            self._end = None

    def raising(self) -> Any:
        """A context like ``ending``, in which a signal raises Stopped."""
        return self.ending(_raise)

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.heard = signal.Signals(number).name
        self._end_now()

    def _end_now(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()


def _raise() -> NoReturn:
    raise Stopped
