"""What both ends of a pair's link have in common: one link at a time, closed and opened again under a higher epoch.

Tells those who wait for a group that the link is lost. Knows no handoff states; who opens and what moves is in
outgoing_link.py and incoming_link.py.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from twinpool.kv_transfer.link import Link, LinkError
from twinpool.kv_transfer.link_roster import LinkRoster
from twinpool.kv_transfer.links import LinkKinds
from twinpool.kv_transfer.pair import Pair
from twinpool.kv_transfer.turns import Turns, Work
from twinpool.model.kv_layout import KVLayout
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

OnLost = Callable[[str], None]  # why the link is lost

MAX_OPEN_LINKS = 64  # of a worker, before idle ones give way; one over gloo takes five descriptors and three threads
MAX_REASON = 500


class LinkEnds:
    """How this worker makes links, and every end of one that is not gone yet, so that closing can wait for them."""

    def __init__(self, kinds: LinkKinds, layout: KVLayout, turns: Turns, max_open_links: int = MAX_OPEN_LINKS) -> None:
        self.kinds = kinds
        self.roster = LinkRoster(max_open_links)
        self.layout = layout
        self.turns = turns
        self._alive: set[object] = set()
        self._all_gone = asyncio.Event()
        self._all_gone.set()

    def prepare(self, kind: str, then: Work) -> None:
        """Do ``then`` in turns, once ``kinds.get`` of this kind answers at once: now, or when a thread saw to it."""
        if self.kinds.is_quick(kind):
            then()
            return
        made = asyncio.get_running_loop().run_in_executor(None, self._make, kind)
        made.add_done_callback(lambda _: self.turns.post(then))

    def _make(self, kind: str) -> None:
        with contextlib.suppress(LinkError):  # who asks for it hears of it
            self.kinds.get(kind)

    def add(self, end: object) -> None:
        """An end begins."""
        self._alive.add(end)
        self._all_gone.clear()

    def remove(self, end: object) -> None:
        """Nothing of an end is left."""
        self._alive.discard(end)
        if not self._alive:
            self._all_gone.set()

    async def wait_gone(self, timeout_s: float) -> bool:
        """Wait for the last end to go; whether it was in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_gone.wait()
        except TimeoutError:
            return False
        return True


class PairLink(ABC):
    """A pair's link, at either end. Used in turns only."""

    def __init__(self, pair: Pair, ends: LinkEnds) -> None:
        self.link_epoch = 0
        self.num_bytes = 0  # moved, over all epochs
        self.kind = ""  # of the link that was opened last
        self.why = ""  # it is of that kind, for people
        self._pair = pair
        self._ends = ends
        self._link: Link | None = None
        self._closed_because = "no link was opened"

    @property
    def is_open(self) -> bool:
        return self._link is not None

    def close(self, reason: str, *, tell: bool = True) -> None:
        """Close the link, if there is one; afterwards no thread here reads or writes a block for it.

        Whoever has a group on it hears ``on_lost``. The next use opens another.
        """
        if not self._is_in_use():
            return
        self._closed_because = f"the link with {self._pair.name} is lost: {reason}"
        self._end_link(reason, tell=tell)
        for on_lost in self._take_users():
            self._ends.turns.post(partial(on_lost, self._closed_because))

    def on_error(self, reason: str) -> None:
        """The link failed."""
        self.close(reason)

    def _end_link(self, reason: str, *, tell: bool) -> None:
        self._ends.roster.drop(self)
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if tell:
            closed = pb.LinkClosed(link_epoch=self.link_epoch, reason=reason[:MAX_REASON])
            self._pair.send(pb.PeerMessage(link_closed=closed))

    def on_link_closed(self, message: pb.LinkClosed) -> None:
        """The peer closed its end."""
        if message.link_epoch == self.link_epoch:
            self.close(message.reason[:MAX_REASON], tell=False)

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """See link_roster.Closable."""

    @abstractmethod
    def give_way(self) -> None:
        """See link_roster.Closable."""

    @abstractmethod
    def _is_in_use(self) -> bool:
        """Whether there is anything to close."""

    @abstractmethod
    def _take_users(self) -> list[OnLost]:
        """Forget all groups; the answer is whom to tell."""


class Reports:
    """LinkEvents of one end, brought from its thread to the control thread. Ends that report more override more."""

    def __init__(self, owner: PairLink, ends: LinkEnds) -> None:
        self._owner = owner
        self._link_epoch = owner.link_epoch
        self._ends = ends
        ends.add(self)

    def on_open(self) -> None:
        """Of no interest: groups are queued from the start."""

    def on_sent(self, seq: int, started_s: float, ended_s: float) -> None:
        """Of no interest here."""

    def on_received(self, seq: int, digest_ok: bool) -> None:
        """Of no interest here."""

    def on_error(self, reason: str) -> None:
        """The owner closes it and tells the peer."""
        self.hop(partial(self._owner.on_error, reason))

    def on_closed(self) -> None:
        """Also to be called if the link could not be made."""
        self._ends.turns.post_threadsafe(partial(self._ends.remove, self))

    def hop(self, work: Work) -> None:
        """Have the owner do ``work``, unless the link is closed by then."""
        self._ends.turns.post_threadsafe(partial(self._if_current, work))

    def _if_current(self, work: Work) -> None:
        if self._owner.is_open and self._owner.link_epoch == self._link_epoch:
            work()
