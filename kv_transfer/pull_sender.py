"""The source's end of a link that pulls: offers blocks chunk by chunk, and hears when each was copied.

Writes no block and sends no KV. Knows nothing of the target's pool.
"""

import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from twinpool.kv_transfer.header import HEADER_BYTES, pack_header
from twinpool.kv_transfer.link import Group, LinkError, LinkEvents, Ticket
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.pull_pool import OwnPool
from twinpool.kv_transfer.pull_socket import connect, new_socket, receive, send
from twinpool.kv_transfer.pull_thread import ACK_BYTES, PullEnd, Terms, is_last

_NUM_OFFERS = 2  # one chunk is copied while the next is digested


@dataclass(frozen=True, slots=True)
class _Offer:
    """A chunk that the target has not taken yet."""

    number: int
    seq: int
    is_last: bool
    started_s: float  # its group, by time.monotonic


class PullSender(PullEnd):
    """See SendLink."""

    def __init__(self, ticket: Ticket, terms: Terms, events: LinkEvents) -> None:
        self._ticket = ticket
        self._offers: deque[_Offer] = deque()
        self._own: OwnPool | None = None
        super().__init__(None, terms, events)

    def send(self, group: Group) -> None:
        """See SendLink. A group of no blocks is a mistake of the caller's."""
        assert group.block_ids is not None
        self._queue.put(group)

    def _open(self) -> None:
        self._use(new_socket())
        self._own = self._terms.memory.own()
        connect(self._connection, self._ticket, self._terms.memory, self._terms.open_timeout_s)

    def _take_group(self) -> Group:
        while self._offers and self._queue.empty():
            self._hear()
        return super()._take_group()

    def _move(self, group: Group) -> None:
        started_s = time.monotonic()
        for span in self._cut(group):
            if len(self._offers) == _NUM_OFFERS:
                self._hear()
            self._offer(group, span, started_s)

    def _offer(self, group: Group, span: Span, started_s: float) -> None:
        assert self._own is not None
        part, digest = self._own_part(group, span), b""
        if self._terms.digest:
            digest = self._touch(partial(self._own.digest, part))
        header = np.empty(HEADER_BYTES, dtype=np.uint8)
        pack_header(replace(self._announced(group, span), digest=digest), header)
        self._offers.append(_Offer(self._num_chunks, group.seq, is_last(group, span), started_s))
        self._num_chunks += 1
        send(self._connection, header.tobytes() + part.block_ids.astype("<i8").tobytes())

    def _hear(self) -> None:
        """Wait until the target has taken the oldest chunk."""
        number = int.from_bytes(receive(self._connection, ACK_BYTES, self._terms.chunk_timeout_s), "little")
        offer = self._offers.popleft()
        if number != offer.number:
            raise LinkError(f"chunk {number} was taken where {offer.number} is due")
        if offer.is_last and not self._is_closing:
            self._events.on_sent(offer.seq, offer.started_s, time.monotonic())

    def _release(self) -> None:
        self._offers.clear()
        self._own = None
