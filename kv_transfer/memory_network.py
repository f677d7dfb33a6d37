"""What all memory links of a process share: who waits for whom, and what shall befall which group.

Knows no bytes; the links are in memory.py.
"""

import secrets
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

Schedule = Callable[[float, Callable[[], None]], Callable[[], None]]  # (delay_s, what) -> how to call it off


class Fault(Enum):
    """What may befall a group between the ends."""

    DROP = "drop"  # it never arrives
    DELAY = "delay"  # it and all behind it wait for MemoryNetwork.release
    DUPLICATE = "duplicate"  # it arrives a second time, where the next should
    REORDER = "reorder"  # the next one overtakes it
    CORRUPT = "corrupt"  # one bit of the data flips
    MISLABEL = "mislabel"  # its header is another handoff's


def timer_schedule(delay_s: float, what: Callable[[], None]) -> Callable[[], None]:
    """Call ``what`` on a thread of its own after ``delay_s`` seconds; a Schedule."""
    timer = threading.Timer(delay_s, what)
    timer.daemon = True
    timer.start()
    return timer.cancel


class MemoryNetwork:
    """What the two ends of each link share: tickets not yet used, and the faults to come.

    Args:
        timeout_s: for each group, and for the ends to meet; over it, the end that waits reports an error.
        schedule: how time passes.
    """

    def __init__(self, *, timeout_s: float = 5.0, schedule: Schedule = timer_schedule) -> None:
        self.timeout_s = timeout_s
        self.schedule = schedule
        self.lock = threading.RLock()
        self._waiting: dict[bytes, Any] = {}
        self._delayed: list[Callable[[], None]] = []
        self._num_sent = 0
        self._faults: dict[int, Fault] = {}

    def inject(self, fault: Fault, after: int = 0) -> None:
        """Let ``fault`` befall the group that is sent ``after`` other groups from now, on whichever link."""
        with self.lock:
            self._faults[self._num_sent + after] = fault

    def release(self) -> None:
        """Let delayed groups go on."""
        with self.lock:
            delayed, self._delayed = self._delayed, []
            for resume in delayed:
                resume()

    def delay(self, resume: Callable[[], None]) -> None:
        """Have ``release`` call this."""
        self._delayed.append(resume)

    def next_fault(self) -> Fault | None:
        """Take the fault that is due for the group being sent."""
        fault = self._faults.pop(self._num_sent, None)
        self._num_sent += 1
        return fault

    def put(self, connection: object) -> bytes:
        """Keep a connection whose source has not come; the answer is its secret, good for one ``take``."""
        secret = secrets.token_bytes(16)
        self._waiting[secret] = connection
        return secret

    def take(self, secret: bytes) -> Any:
        """Return the connection that waits under this secret, once; None if there is none."""
        return self._waiting.pop(secret, None)

    def forget(self, connection: object) -> None:
        """Its source will not come."""
        self._waiting = {secret: other for secret, other in self._waiting.items() if other is not connection}
