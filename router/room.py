"""Remembers who found no room among the workers as they are now, so that nobody larger need ask again.

Knows no policy: only that there is no more room for more.
"""

from typing import NamedTuple

from twinpool.core.messages import Request
from twinpool.router.route import Hold


class Need(NamedTuple):
    """What room depends on."""

    num_tokens: int
    max_new_tokens: int
    parked_on: str | None

    @classmethod
    def of(cls, request: Request, parked_on: str | None) -> "Need":
        return cls(len(request.token_ids), request.max_new_tokens, parked_on)

    def is_at_least(self, other: "Need") -> bool:
        """Whether it finds no room where the other found none: it asks for no less, of the same kind of worker."""
        is_alike = self.parked_on == other.parked_on and (self.max_new_tokens > 1) == (other.max_new_tokens > 1)
        is_smaller = self.num_tokens < other.num_tokens or sum(self[:2]) < sum(other[:2])
        return is_alike and not is_smaller


class RoomMemo:
    """Owns what was found out about one version of the gateway's `ViewTable`: room does not depend on time."""

    def __init__(self) -> None:
        self._version = -1
        self._beaten: list[tuple[Need, Hold]] = []

    def note(self, need: Need, version: int, hold: Hold) -> None:
        """There was no room for this."""
        self._turn_to(version)
        if hold.reason.is_of_room:
            self._beaten.append((need, hold))

    def recall(self, need: Need, version: int) -> Hold | None:
        """What asking would give. None: ask.

        Only for what was asked for before, as what is too large for every worker is not held but refused.
        """
        self._turn_to(version)
        return next((hold for other, hold in self._beaten if need.is_at_least(other)), None)

    def _turn_to(self, version: int) -> None:
        if version != self._version:
            self._version = version
            self._beaten.clear()
