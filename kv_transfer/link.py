"""What every link is: two ends in two workers that move announced groups one way, in order.

A link never learns a size from the other end, and never touches a block that it was not given. Knows no handoff states
and no control channel.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinpool.kv_transfer.coding import RAW, Coding
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import HeadRange, KVLayout

BlockIds = NDArray[np.int64]

CHUNK_BYTES = 8 << 20  # cancel and deadlines act at chunks, so they bound how long either takes; each costs CPU, too


class LinkError(Exception):
    """The link failed and is poisoned: it can only be closed, and opened again under the next link epoch."""


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """Where a group lies in the pool of the source's rank, which may hold other layers and heads than the target's."""

    layout: KVLayout  # of that pool
    first_layer: int  # of the group's layers there
    heads: HeadRange | None = None  # of that pool's; None: all

    def layers_of(self, part: Span, group: Span) -> tuple[int, int]:
        """The layers ``[first, end)`` there of a part of the group; both spans in the target's own layers."""
        shift = self.first_layer - group.first_layer
        return part.first_layer + shift, part.end_layer + shift


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One announced group, as an end of a link sees it: layers and heads count as in this end's own pool.

    Both ends name as many layers, blocks and heads, so that they derive the same chunks and sizes.
    """

    request_id: str
    epoch: int
    seq: int  # as in Next; names the group in LinkEvents
    span: Span
    block_ids: BlockIds | None  # of the span's blocks, in order; None: receive, and throw away
    coding: Coding = RAW  # of its bytes on the link
    heads: HeadRange | None = None  # of this end's pool; None: all
    source: SourcePlace | None = None  # for targets that copy out of the source's pool; None: at the same place as here

    def wire_layout(self, pool: KVLayout) -> KVLayout:
        """How its bytes lie on the link, before they are coded, ``pool`` being this end's own.

        Raises:
            ValueError: the pool has no such heads.
        """
        return pool.of_heads(self.heads)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where and by what password the two ends meet; made by the receiver, good for one link."""

    host: str
    port: int
    secret: bytes


class LinkEvents(Protocol):
    """What an end reports, from any thread; none may block. After ``close`` only ``on_closed`` comes."""

    def on_open(self) -> None:
        """Both ends have met."""
        ...

    def on_sent(self, seq: int, started_s: float, ended_s: float) -> None:
        """The receiver has taken the group; it was on the wire between these times of ``time.monotonic``."""
        ...

    def on_received(self, seq: int, digest_ok: bool) -> None:
        """The receive is over. If a digest failed, what that chunk's own blocks hold now means nothing."""
        ...

    def on_error(self, reason: str) -> None:
        """The link is poisoned; groups given to it are lost, and what their blocks hold at the target means nothing.

        Comes once, and nothing but ``on_closed`` after it.
        """
        ...

    def on_closed(self) -> None:
        """The last call: every descriptor of this end is closed, and its thread ends."""
        ...


class Link(Protocol):
    """One end. Groups are queued, so no call blocks on the peer; every group ends in an event within its deadline."""

    def close(self) -> None:
        """End the link. Once this returns, no block is read or written any more; what remains ends in the background.

        Waits for at most one chunk's copy, and where bytes move between wire and blocks, until the wire has let go of
        them, which waits for nothing that the peer does. Idempotent.
        """
        ...

    def join(self, timeout_s: float) -> bool:
        """Wait until the end's thread is gone; whether it was in time. For after ``close``."""
        ...


class SendLink(Link, Protocol):
    """The source's end."""

    def send(self, group: Group) -> None:
        """Queue a group, whose blocks must keep their contents until ``on_sent`` or ``close``."""
        ...


class ReceiveLink(Link, Protocol):
    """The target's end."""

    def receive(self, group: Group) -> None:
        """Queue the receive of the group that comes next; keep its blocks until ``on_received`` or ``close``."""
        ...


class Links(Protocol):
    """One kind of link, as one worker makes them."""

    kind: str
    why: str  # this kind was chosen, for people

    def listen(self, events: LinkEvents) -> tuple[ReceiveLink, Ticket]:
        """Begin a link as its target: the ticket goes to the source by the control channel.

        Raises:
            LinkError: this worker cannot listen. Nothing is left open, and no event comes.
        """
        ...

    def dial(self, ticket: Ticket, events: LinkEvents) -> SendLink:
        """Begin a link as its source. That the target cannot be met is reported by ``on_error``."""
        ...
