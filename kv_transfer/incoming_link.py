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
        self._next_seq = 0

    def on_open_link(self, message: pb.OpenLink) -> None:
        """The source asks for a link, and has none any more; answer with a ticket or a refusal."""
        if message.link_epoch <= self.link_epoch:
            raise WireError(f"link epoch {message.link_epoch} was used before")
        self.close("the source asked for another", tell=False)
        self.link_epoch = message.link_epoch
        links = self._ends.links
        if message.kind != links.kind:
            self._refuse(f"this worker receives over {links.kind}, not over {message.kind[:20]}")
            return
        reports = _ReceiveReports(self, self._ends)
        try:
            self._receiver, ticket = links.listen(reports)
        except LinkError as error:
            reports.on_closed()
            self._refuse(str(error))
            return
        self._link = self._receiver
        ready = pb.LinkReady(link_epoch=self.link_epoch, host=ticket.host, port=ticket.port, ticket=ticket.secret)
        self._pair.send(pb.PeerMessage(link_ready=ready))

    def check_order(self, announced: Next) -> None:
        """Raise WireError unless the group is the next one and its size can be known."""
        if announced.seq != self._next_seq:
            raise WireError(f"group {announced.seq} was announced where {self._next_seq} is due")
        if announced.span.end_layer > self._ends.layout.num_layers:
            raise WireError(f"{announced.span} reaches beyond layer {self._ends.layout.num_layers}")
        self._next_seq += 1

    def receive(self, reception: Reception) -> None:
        """Post the receive of the group that was just announced."""
        if self._receiver is None:
            self._ends.turns.post(partial(reception.on_lost, self._closed_because))
            return
        announced = reception.announced
        self._posted[announced.seq] = reception
        self._receiver.receive(
            Group(announced.request_id, announced.epoch, announced.seq, announced.span, reception.block_ids)
        )

    def received(self, seq: int, digest_ok: bool) -> None:
        """A receive is over."""
        reception = self._posted.pop(seq)
        self.num_bytes += reception.announced.span.num_bytes(self._ends.layout)
        reception.on_received(digest_ok)

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
