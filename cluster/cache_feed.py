"""What one gateway is still to be told of a worker's prefix cache: a full list first, then what changes.

Knows short names of blocks only. Bounded: a gateway that reads too slowly misses changes, sees that it did, and asks
for the list again.
"""

from collections.abc import Mapping
from itertools import islice

from twinpool.protos.twinpool.v1 import worker_pb2 as pb

MAX_NAMES = 8192  # of one message: 64 KiB
MAX_WAITING = 65_536  # changes that wait to be told


class CacheFeed:
    """Owns what waits; counts the messages that it fills."""

    def __init__(self) -> None:
        self._sequence = 0
        self._list: list[int] | None = None  # of the full list, what is not told yet; None: it was told
        self._is_cleared = False  # the next message begins the list
        self._changes: dict[int, bool] = {}  # since the list: stored or removed, the newest word of each
        self._is_lost = True  # nothing is to be told until the list comes

    @property
    def has_news(self) -> bool:
        return self._is_cleared or bool(self._list or self._changes)

    def begin(self, names: list[int]) -> None:
        """This is all that the worker holds now; what was to be told before counts no more."""
        self._list, self._is_cleared, self._is_lost = names, True, False
        self._changes.clear()

    def change(self, changes: Mapping[int, bool]) -> None:
        """These were stored (True) or removed since."""
        if self._is_lost:
            return
        self._changes.update(changes)
        if len(self._changes) > MAX_WAITING:
            self._lose()

    def _lose(self) -> None:
        """Leave a gap in the count, which one last message shows."""
        self._sequence += 1
        self._is_lost, self._is_cleared, self._list = True, False, None
        self._changes = dict(islice(self._changes.items(), 1))

    def fill(self, message: pb.CacheEvents) -> None:
        """Put into an empty message as much of what waits as one may hold; there must be news."""
        self._sequence += 1
        message.sequence = self._sequence
        message.cleared, self._is_cleared = self._is_cleared, False
        if self._list is not None:
            message.stored.extend(self._list[-MAX_NAMES:])
            del self._list[-MAX_NAMES:]
            if not self._list:
                self._list = None
            return
        told = dict(islice(self._changes.items(), MAX_NAMES))
        message.stored.extend(name for name, is_stored in told.items() if is_stored)
        message.removed.extend(name for name, is_stored in told.items() if not is_stored)
        if len(told) == len(self._changes):
            self._changes = {}
        else:
            for name in told:
                del self._changes[name]
