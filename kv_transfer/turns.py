"""Runs everything that happens to a worker's handoffs one after the other on the control thread.

Work that is posted from within other work runs after it, so no state machine is ever re-entered. Knows no handoffs.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

Work = Callable[[], object]  # what it returns is nobody's


class Turns:
    """A queue of work of the running event loop. ``clock`` is the monotonic clock of all deadlines."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Work] = deque()
        self._is_running = False

    def post(self, work: Work) -> None:
        """Run ``work`` now, or, from within other work, after it. For the control thread."""
        self._queue.append(work)
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._queue:
                self._queue.popleft()()
        finally:
            self._is_running = False

    def post_threadsafe(self, work: Work) -> None:
        """Have ``work`` run soon. From any thread; nothing happens once the loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.post, work)

    def call_at(self, deadline: float, work: Work) -> asyncio.TimerHandle:
        """Run ``work`` when the clock reaches ``deadline``, or shortly before or after."""
        return self._loop.call_later(max(0.0, deadline - self.clock()), self.post, work)


class Alarm:
    """Rings at a deadline that moves: set to a later one it may ring early, and must then be set again."""

    def __init__(self, turns: Turns, ring: Work) -> None:
        self._turns = turns
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._deadline = 0.0

    def set(self, deadline: float | None) -> None:
        """Ring at ``deadline``, or earlier if that was asked before; None: not at all."""
        if deadline is None:
            self.cancel()
        elif self._handle is None or deadline < self._deadline:
            self.cancel()
            self._deadline = deadline
            self._handle = self._turns.call_at(deadline, self._fire)

    def cancel(self) -> None:
        """Be silent until set again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._ring()
