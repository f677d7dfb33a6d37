"""The target's end of a pair's link: opened when the source asks, with one receive for each group announced.

Sizes come from what was announced and checked, never from the link. Knows no handoff states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twinpool.kv_transfer.handoff import Next
from twinpool.kv_transfer.link import BlockIds, Group, LinkError, ReceiveLink
from twinpool.kv_transfer.pair import Pair
from twinpool.kv_transfer.pair_link import LinkEnds, OnLost, PairLink, Reports
from twinpool.kv_transfer.wire import WireError
from twinpool.protos.twinpool.v1 import worker_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class Reception:
    """A group that was announced, and who wants to know: exactly one of the two is called, in turns."""

    announced: Next
    block_ids: BlockIds | None  # of the span; None: into scratch memory
    on_received: Callable[[bool], None]  # whether its digests hold
    on_lost: OnLost


class _ReceiveReports(Reports):
    def __init__(self, owner: "IncomingLink", ends: LinkEnds) -> None:
        super().__init__(owner, ends)
        self._receiver = owner

    def on_received(self, seq: int, digest_ok: bool) -> None:
        self.hop(partial(self._receiver.received, seq, digest_ok))


class IncomingLink(PairLink):
    """One for each pair that called this worker."""

    def __init__(self, pair: Pair, ends: LinkEnds) -> None:
        super().__init__(pair, ends)
        self._receiver: ReceiveLink | None = None
        self._posted: dict[int, Reception] = {}
        self._asked_to_close = 0  # the link epoch
        self._next_seq = 0

    def on_open_link(self, message: pb.OpenLink) -> None:
        """The source asks for a link, and has none any more; answer with a ticket or a refusal."""
        if message.link_epoch <= self.link_epoch:
            raise WireError(f"link epoch {message.link_epoch} was used before")
        self.close("the source asked for another", tell=False)
        self.link_epoch = message.link_epoch
        self._ends.prepare(message.kind, partial(self._listen, message))

    def _listen(self, message: pb.OpenLink) -> None:
        if self._pair.is_lost or message.link_epoch != self.link_epoch:
            return
        reports = _ReceiveReports(self, self._ends)
        try:
            links = self._ends.kinds.get(message.kind, self._pair.peer_offer)
            self._receiver, ticket = links.listen(reports)
        except LinkError as error:
            reports.on_closed()
            self._refuse(str(error))
            return
        self.kind, self.why = message.kind, "the source chose it"
        self._link = self._receiver
        self._ends.roster.touch(self)
        ready = pb.LinkReady(link_epoch=self.link_epoch, host=ticket.host, port=ticket.port, ticket=ticket.secret)
        self._pair.send(pb.PeerMessage(link_ready=ready))

    def check_order(self, announced: Next) -> None:
        """Raise WireError unless the group is the next one and its size can be known."""
        if announced.seq != self._next_seq:
            raise WireError(f"group {announced.seq} was announced where {self._next_seq} is due")
        if announced.span.end_layer > self._ends.layout.num_layers:
            raise WireError(f"{announced.span} reaches beyond layer {self._ends.layout.num_layers}")
        try:
            announced.coding.num_bytes(announced.span, self._ends.layout)
        except ValueError as error:
            raise WireError(f"{announced.span}, codec {announced.coding.codec}: {error}") from None
        self._next_seq += 1

    def receive(self, reception: Reception) -> None:
        """Post the receive of the group that was just announced."""
        if self._receiver is None:
            self._ends.turns.post(partial(reception.on_lost, self._closed_because))
            return
        announced = reception.announced
        self._posted[announced.seq] = reception
        self._asked_to_close = 0  # it is used: whoever was asked had reason to go on
        self._ends.roster.touch(self)
        request_id, epoch, seq, span = announced.request_id, announced.epoch, announced.seq, announced.span
        self._receiver.receive(Group(request_id, epoch, seq, span, reception.block_ids, announced.coding))

    def received(self, seq: int, digest_ok: bool) -> None:
        """A receive is over."""
        reception = self._posted.pop(seq)
        announced = reception.announced
        self.num_bytes += announced.coding.num_bytes(announced.span, self._ends.layout)
        reception.on_received(digest_ok)
        self._ends.roster.shrink()

    @property
    def is_idle(self) -> bool:
        """See PairLink."""
        return self._link is not None and not self._posted

    def give_way(self) -> None:
        """Ask the source to close it: it alone knows that no group is on its way."""
        if self._asked_to_close != self.link_epoch:
            self._asked_to_close = self.link_epoch
            unused = pb.LinkUnused(link_epoch=self.link_epoch)
            self._pair.send(pb.PeerMessage(link_unused=unused))

    def _refuse(self, reason: str) -> None:
        self._closed_because = reason
        self._pair.send(pb.PeerMessage(link_ready=pb.LinkReady(link_epoch=self.link_epoch, refusal=reason)))

    def _is_in_use(self) -> bool:
        return self._link is not None

    def _take_users(self) -> list[OnLost]:
        self._receiver = None
        users = [reception.on_lost for reception in self._posted.values()]
        self._posted.clear()
        return users
