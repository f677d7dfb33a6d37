"""The source's end of a pair's link: opened when first needed, and fed with one group after the other.

Announces each group before its bytes. Knows no handoff states.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twinpool.kv_transfer.coding import RAW, Coding
from twinpool.kv_transfer.handoff import Next
from twinpool.kv_transfer.link import BlockIds, Group, LinkError, SendLink, Ticket
from twinpool.kv_transfer.link_choice import LinkChoice, NoLink, choose_links
from twinpool.kv_transfer.pair import Pair
from twinpool.kv_transfer.pair_link import MAX_REASON, LinkEnds, OnLost, PairLink, Reports
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.wire import message_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

MAX_TICKET_BYTES = 64
ANSWER_TIMEOUT_S = 10.0  # from OpenLink to LinkReady; to meet on the link has a deadline of its own


@dataclass(frozen=True, slots=True, eq=False)
class Transmission:
    """A group to be sent, and who wants to know: exactly one of the two is called, in turns."""

    request_id: str
    epoch: int
    span: Span
    block_ids: BlockIds  # of the span
    on_sent: Callable[[float, float], None]  # when it began and ended, by time.monotonic
    on_lost: OnLost
    coding: Coding = RAW


class _SendReports(Reports):
    def __init__(self, owner: "OutgoingLink", ends: LinkEnds) -> None:
        super().__init__(owner, ends)
        self._sender = owner

    def on_open(self) -> None:
        self.hop(self._sender.met)

    def on_sent(self, seq: int, started_s: float, ended_s: float) -> None:
        self.hop(partial(self._sender.sent, seq, started_s, ended_s))


class OutgoingLink(PairLink):
    """One for each pair that this worker called.

    Nothing is announced before the two ends have met, so that a kind that cannot be opened here costs no handoff: the
    next one is tried, and kept for as long as the pair lasts.
    """

    def __init__(self, pair: Pair, ends: LinkEnds) -> None:
        super().__init__(pair, ends)
        self._sender: SendLink | None = None
        self._is_met = False  # the ends of the link; else groups are queued
        self._num_met = 0
        self._is_wanted = False  # as soon as the pair is open
        self._choices: deque[LinkChoice] = deque()  # the first is in use, or to be tried
        self._asked: asyncio.TimerHandle | None = None  # until the target answers OpenLink
        self._queued: deque[Transmission] = deque()
        self._outstanding: dict[int, Transmission] = {}
        self._next_seq = 0  # never begins anew, so that no group is taken for one of an earlier link

    def ensure(self) -> None:
        """Ask the target for a link, unless there is one or it was asked."""
        if self._link is not None:
            self._ends.roster.touch(self)
        elif not self._is_in_use():
            self._is_wanted = True
            self.on_pair_open()

    def on_pair_open(self) -> None:
        """The peer may have said hello: ask it for a link, if one is wanted."""
        theirs = self._pair.peer_offer
        if not self._is_wanted or theirs is None:
            return
        if not self._choices:
            kinds = self._ends.kinds
            choices = choose_links(kinds.offer, theirs, kinds.named_by)
            if isinstance(choices, NoLink):
                self.kind, self.why = "", choices.why
                self.close(choices.why, tell=False)
                return
            self._choices.extend(choices)
        self._is_wanted = False
        self._ask(self._choices[0])

    def _ask(self, choice: LinkChoice) -> None:
        self.kind, self.why = choice.kind, choice.why
        self.link_epoch += 1
        turns = self._ends.turns
        self._asked = turns.call_at(turns.clock() + ANSWER_TIMEOUT_S, partial(self.close, "the target did not answer"))
        asking = pb.OpenLink(link_epoch=self.link_epoch, kind=choice.kind)
        self._ends.prepare(choice.kind, partial(self._send_open_link, asking))

    def _send_open_link(self, asking: pb.OpenLink) -> None:
        if self._asked is not None and asking.link_epoch == self.link_epoch:
            self._pair.send(pb.PeerMessage(open_link=asking))

    def transmit(self, transmission: Transmission) -> None:
        """Announce a group and send it, as soon as there is a link."""
        if self._sender is not None and self._is_met:
            self._announce(self._sender, transmission)
        else:
            self._queued.append(transmission)
        self.ensure()

    def on_link_ready(self, message: pb.LinkReady) -> None:
        """The target says where to meet, or why not."""
        if self._asked is None or message.link_epoch != self.link_epoch:
            return
        if message.refusal or len(message.ticket) > MAX_TICKET_BYTES or message.port >= 2**16:
            self._try_next(message.refusal or "the ticket makes no sense", tell=False)
            return
        ticket = Ticket(message.host, message.port, message.ticket)
        try:
            links = self._ends.kinds.get(self.kind, self._pair.peer_offer)
        except LinkError as error:
            self._try_next(str(error), tell=True)
            return
        self._stop_asking()
        self._link = self._sender = links.dial(ticket, _SendReports(self, self._ends))
        self._ends.roster.touch(self)

    def met(self) -> None:
        """The two ends have met: what waited for that goes out."""
        assert self._sender is not None
        self._is_met = True
        self._num_met += 1
        while self._queued:
            self._announce(self._sender, self._queued.popleft())

    def on_error(self, reason: str) -> None:
        """See PairLink. A link that could not even be opened makes room for one of the next kind."""
        if self._is_met:
            self.close(reason)
        else:
            self._try_next(reason, tell=True)

    def on_link_closed(self, message: pb.LinkClosed) -> None:
        """See PairLink."""
        if message.link_epoch == self.link_epoch and self._link is not None and not self._is_met:
            self._try_next(message.reason[:MAX_REASON], tell=False)
        else:
            super().on_link_closed(message)

    def on_link_unused(self, message: pb.LinkUnused) -> None:
        """The target would like to be rid of it."""
        if message.link_epoch == self.link_epoch and self.is_idle:
            self.give_way()

    def _try_next(self, reason: str, *, tell: bool) -> None:
        failed = self._choices.popleft()
        if not self._choices:
            self.close(f"{failed.kind}: {reason}", tell=tell)
            return
        self._end_link(reason, tell=tell)
        self._sender = None
        self._stop_asking()
        why = f"{failed.kind} could not be opened: {reason}"
        self._choices[0] = LinkChoice(self._choices[0].kind, f"{self._ends.kinds.named_by}: {why}")
        self._ask(self._choices[0])

    def sent(self, seq: int, started_s: float, ended_s: float) -> None:
        """The target has taken a group."""
        transmission = self._outstanding.pop(seq)
        self.num_bytes += transmission.coding.num_bytes(transmission.span, self._ends.layout)
        transmission.on_sent(started_s, ended_s)
        self._ends.roster.shrink()

    @property
    def num_reopenings(self) -> int:
        """How often a link was opened after one that had been open before."""
        return max(0, self._num_met - 1)

    @property
    def is_idle(self) -> bool:
        """See PairLink."""
        return self._is_met and not self._outstanding and not self._queued

    def give_way(self) -> None:
        """Close it; the next group opens another."""
        self.close("it was unused for longest")

    def _announce(self, sender: SendLink, transmission: Transmission) -> None:
        request_id, epoch, span = transmission.request_id, transmission.epoch, transmission.span
        coding = transmission.coding
        seq = self._next_seq
        self._next_seq += 1
        self._outstanding[seq] = transmission
        self._pair.send(message_to_proto(Next(request_id, epoch, seq, span, coding)))
        sender.send(Group(request_id, epoch, seq, span, transmission.block_ids, coding))

    def _is_in_use(self) -> bool:
        return self._link is not None or self._asked is not None or self._is_wanted

    def _stop_asking(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None

    def _take_users(self) -> list[OnLost]:
        self._sender = None
        self._is_met = self._is_wanted = False
        self._stop_asking()
        users = [transmission.on_lost for transmission in (*self._outstanding.values(), *self._queued)]
        self._outstanding.clear()
        self._queued.clear()
        return users
