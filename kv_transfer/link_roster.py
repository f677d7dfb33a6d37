"""Keeps the number of a worker's open links down: the one that was unused for longest goes first.

A link in use is never closed for room, so there may be more for a while. Knows no peer and no transport.
"""

from typing import Protocol


class Closable(Protocol):
    """A link, as the roster sees it."""

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and no group is under way on it."""
        ...

    def give_way(self) -> None:
        """Close the idle link, or ask the peer to. May be called again."""
        ...


class LinkRoster:
    """The open links of one worker, in the order of their last use. Used in turns only."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._links: dict[Closable, None] = {}  # the one used last is the last

    def __len__(self) -> int:
        return len(self._links)

    def touch(self, link: Closable) -> None:
        """It is opened, or used."""
        self._links.pop(link, None)
        self._links[link] = None
        self.shrink()

    def drop(self, link: Closable) -> None:
        """It is closed."""
        self._links.pop(link, None)

    def shrink(self) -> None:
        """Have idle links give way while there are too many; the one used last stays."""
        excess = len(self._links) - self._max_open
        if excess <= 0:
            return
        for link in list(self._links)[:-1]:
            if excess <= 0:
                break
            if link.is_idle:
                link.give_way()
                excess -= 1
