"""Calls back when a blocking wait outlives its limit.

Knows nothing of gRPC. One thread serves all streams of a client and sleeps until the nearest limit, so that a token
costs a dictionary entry and not a thread.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType


class Watchdog:
    """Owns the thread, which starts with the first limit and ends with ``close``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: set[Limit] = set()
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def limit(self, seconds: float, on_expiry: Callable[[], object]) -> "Limit":
        """Return a context; ``on_expiry`` is called, on the watchdog's thread, if its body takes over ``seconds``."""
        return Limit(self, seconds, on_expiry)

    def close(self) -> None:
        """End the thread. Limits that are open no longer expire."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def add(self, limit: "Limit") -> None:
        """Watch one limit."""
        with self._changed:
            self._limits.add(limit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="twinpool-client-limits", daemon=True)
                self._thread.start()
            if limit.ends_at < self._wakes_at:
                self._changed.notify()

    def remove(self, limit: "Limit") -> None:
        """Watch it no longer."""
        with self._changed:
            self._limits.discard(limit)

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for limit in [limit for limit in self._limits if limit.ends_at <= now]:
                    self._limits.remove(limit)
                    limit.expire()
                self._wakes_at = min((limit.ends_at for limit in self._limits), default=float("inf"))
                self._changed.wait(None if self._wakes_at == float("inf") else self._wakes_at - now)


class Limit:
    """One wait being watched; ``expired`` says whether it took too long."""

    __slots__ = ("_on_expiry", "_seconds", "_watchdog", "ends_at", "expired")

    def __init__(self, watchdog: Watchdog, seconds: float, on_expiry: Callable[[], object]) -> None:
        self._watchdog = watchdog
        self._seconds = seconds
        self._on_expiry = on_expiry
        self.ends_at = 0.0
        self.expired = False

    def __enter__(self) -> "Limit":
        self.ends_at = time.monotonic() + self._seconds
        self._watchdog.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.remove(self)

    def expire(self) -> None:
        """Called by the watchdog, once."""
        self.expired = True
        self._on_expiry()
