"""The source's end of a pair's link: opened when first needed, and fed with one group after the other.

Announces each group before its bytes. Knows no handoff states.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twinpool.kv_transfer.handoff import Next
from twinpool.kv_transfer.link import BlockIds, Group, SendLink, Ticket
from twinpool.kv_transfer.pair import Pair
from twinpool.kv_transfer.pair_link import LinkEnds, OnLost, PairLink, Reports
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


class _SendReports(Reports):
    def __init__(self, owner: "OutgoingLink", ends: LinkEnds) -> None:
        super().__init__(owner, ends)
        self._sender = owner

    def on_sent(self, seq: int, started_s: float, ended_s: float) -> None:
        self.hop(partial(self._sender.sent, seq, started_s, ended_s))


class OutgoingLink(PairLink):
    """One for each pair that this worker called."""

    def __init__(self, pair: Pair, ends: LinkEnds) -> None:
        super().__init__(pair, ends)
        self._sender: SendLink | None = None
        self._asked: asyncio.TimerHandle | None = None  # until the target answers OpenLink
        self._queued: deque[Transmission] = deque()
        self._outstanding: dict[int, Transmission] = {}
        self._next_seq = 0  # never begins anew, so that no group is taken for one of an earlier link

    def ensure(self) -> None:
        """Ask the target for a link, unless there is one or it was asked."""
        if self._is_in_use():
            return
        self.link_epoch += 1
        turns = self._ends.turns
        self._asked = turns.call_at(turns.clock() + ANSWER_TIMEOUT_S, partial(self.close, "the target did not answer"))
        asking = pb.OpenLink(link_epoch=self.link_epoch, kind=self._ends.links.kind)
        self._pair.send(pb.PeerMessage(open_link=asking))

    def transmit(self, transmission: Transmission) -> None:
        """Announce a group and send it, as soon as there is a link."""
        if self._sender is not None:
            self._announce(self._sender, transmission)
        else:
            self._queued.append(transmission)
            self.ensure()

    def on_link_ready(self, message: pb.LinkReady) -> None:
        """The target says where to meet, or why not."""
        if self._asked is None or message.link_epoch != self.link_epoch:
            return
        if message.refusal or len(message.ticket) > MAX_TICKET_BYTES or message.port >= 2**16:
            self.close(message.refusal or "the ticket makes no sense", tell=False)
            return
        self._asked.cancel()
        self._asked = None
        ticket = Ticket(message.host, message.port, message.ticket)
        self._link = self._sender = self._ends.links.dial(ticket, _SendReports(self, self._ends))
        while self._queued:
            self._announce(self._sender, self._queued.popleft())

    def sent(self, seq: int, started_s: float, ended_s: float) -> None:
        """The target has taken a group."""
        transmission = self._outstanding.pop(seq)
        self.num_bytes += transmission.span.num_bytes(self._ends.layout)
        transmission.on_sent(started_s, ended_s)

    def _announce(self, sender: SendLink, transmission: Transmission) -> None:
        request_id, epoch, span = transmission.request_id, transmission.epoch, transmission.span
        seq = self._next_seq
        self._next_seq += 1
        self._outstanding[seq] = transmission
        self._pair.send(message_to_proto(Next(request_id, epoch, seq, span)))
        sender.send(Group(request_id, epoch, seq, span, transmission.block_ids))

    def _is_in_use(self) -> bool:
        return self._link is not None or self._asked is not None

    def _take_users(self) -> list[OnLost]:
        self._sender = None
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None
        users = [transmission.on_lost for transmission in (*self._outstanding.values(), *self._queued)]
        self._outstanding.clear()
        self._queued.clear()
        return users
