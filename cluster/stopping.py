"""SIGINT and SIGTERM while something long runs: they end what may be ended now, and are noted otherwise.

Knows signals, not what runs. For the main thread, where alone Python hears signals.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

HEARD = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """Raised by ``StopSignals``: in the midst of whatever runs, like KeyboardInterrupt, or by ``check``."""


class StopSignals:
    """Owns the handlers from entering to leaving. ``heard`` is the name of a signal that came, or empty."""

    def __init__(self) -> None:
        self.heard = ""
        self._end: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in HEARD}
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals, again where some library has taken them meanwhile."""
        for number in HEARD:
            signal.signal(number, self._hear)

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.heard:
            raise Stopped

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
