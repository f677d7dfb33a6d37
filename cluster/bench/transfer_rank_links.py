"""Links between workers of several ranks, for `twinpool bench transfer`: one link for each pair of ranks, as if one.

What each carries is kv_transfer/rank_groups.py's. All ranks of a worker are in one process here, and its leader alone
speaks with the other's. Knows no handoff.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from twinpool.kv_transfer.link import Group, Link, LinkError, LinkEvents, Links, ReceiveLink, SendLink, Ticket
from twinpool.kv_transfer.rank_groups import RankGroups, Ranks

End = TypeVar("End", bound=Link)


class RankLinks:
    """Makes all links between the ranks of two workers at once (see Links).

    Args:
        links: of each rank of this worker, in their order.
    """

    def __init__(self, groups: RankGroups, links: Sequence[Links]) -> None:
        self.kind = links[0].kind
        self.why = links[0].why
        self._groups = groups
        self._links = links

    def listen(self, events: LinkEvents) -> tuple["JoinedReceiveLink", Ticket]:
        """See Links. The ticket is those of all parts, written where a host's name would be."""
        joined = _JoinedEvents(events, len(self._groups.links))
        ends: dict[Ranks, ReceiveLink] = {}
        tickets: list[tuple[str, int, str]] = []
        for ranks in self._groups.links:
            try:
                ends[ranks], ticket = self._links[ranks[1]].listen(_PartEvents(joined))
            except LinkError:
                for end in ends.values():
                    end.close()
                raise
            tickets.append((ticket.host, ticket.port, ticket.secret.hex()))
        return JoinedReceiveLink(self._groups, ends, joined), Ticket(json.dumps(tickets), 0, b"")

    def dial(self, ticket: Ticket, events: LinkEvents) -> "JoinedSendLink":
        """See Links."""
        joined = _JoinedEvents(events, len(self._groups.links))
        ends: dict[Ranks, SendLink] = {}
        for ranks, (host, port, secret) in zip(self._groups.links, json.loads(ticket.host), strict=True):
            part = Ticket(host, port, bytes.fromhex(secret))
            ends[ranks] = self._links[ranks[0]].dial(part, _PartEvents(joined))
        return JoinedSendLink(self._groups, ends, joined)


class _JoinedLink(Generic[End]):
    """What both ends have in common (see Link)."""

    def __init__(self, groups: RankGroups, ends: Mapping[Ranks, End], joined: "_JoinedEvents") -> None:
        self._groups = groups
        self._ends = ends
        self._joined = joined

    def close(self) -> None:
        """See Link."""
        for end in self._ends.values():
            end.close()

    def join(self, timeout_s: float) -> bool:
        """See Link."""
        return all(end.join(timeout_s) for end in self._ends.values())


class JoinedSendLink(_JoinedLink[SendLink]):
    """See SendLink."""

    def send(self, group: Group) -> None:
        """See SendLink."""
        parts = list(self._groups.at_source(group))
        self._joined.expect(group.seq, len(parts))
        for ranks, part in parts:
            self._ends[ranks].send(part)


class JoinedReceiveLink(_JoinedLink[ReceiveLink]):
    """See ReceiveLink."""

    def receive(self, group: Group) -> None:
        """See ReceiveLink."""
        parts = list(self._groups.at_target(group))
        self._joined.expect(group.seq, len(parts))
        for ranks, part in parts:
            self._ends[ranks].receive(part)


@dataclass
class _Pending:
    """A group, parts of which are on their way."""

    num_parts: int
    digest_ok: bool = True
    started_s: float = inf
    ended_s: float = 0.0


class _JoinedEvents:
    """What is told of all parts together: a thing that each does, when the last has done it; an error, once."""

    def __init__(self, events: LinkEvents, num_links: int) -> None:
        self._events = events
        self._num_opening = self._num_alive = num_links
        self._pending: dict[int, _Pending] = {}
        self._has_failed = False
        self._lock = threading.Lock()

    def expect(self, seq: int, num_parts: int) -> None:
        """A group is about to be given to so many links."""
        with self._lock:
            self._pending[seq] = _Pending(num_parts)

    def opened(self) -> None:
        """One link is open."""
        with self._lock:
            self._num_opening -= 1
            is_last = self._num_opening == 0
        if is_last:
            self._events.on_open()

    def over(self, seq: int, digest_ok: bool, started_s: float, ended_s: float) -> _Pending | None:
        """A part has left or arrived; returns the group if it was the last."""
        with self._lock:
            group = self._pending[seq]
            group.num_parts -= 1
            group.digest_ok &= digest_ok
            group.started_s, group.ended_s = min(group.started_s, started_s), max(group.ended_s, ended_s)
            return self._pending.pop(seq) if group.num_parts == 0 else None

    def sent(self, seq: int, started_s: float, ended_s: float) -> None:
        group = self.over(seq, True, started_s, ended_s)
        if group is not None:
            self._events.on_sent(seq, group.started_s, group.ended_s)

    def received(self, seq: int, digest_ok: bool) -> None:
        group = self.over(seq, digest_ok, 0.0, 0.0)
        if group is not None:
            self._events.on_received(seq, group.digest_ok)

    def failed(self, reason: str) -> None:
        """One link failed, and so all have."""
        with self._lock:
            is_first, self._has_failed = not self._has_failed, True
        if is_first:
            self._events.on_error(reason)

    def closed(self) -> None:
        """One link is gone."""
        with self._lock:
            self._num_alive -= 1
            is_last = self._num_alive == 0
        if is_last:
            self._events.on_closed()


class _PartEvents:
    """LinkEvents of one link of several."""

    def __init__(self, joined: _JoinedEvents) -> None:
        self.on_open = joined.opened
        self.on_sent = joined.sent
        self.on_received = joined.received
        self.on_error = joined.failed
        self.on_closed = joined.closed
