"""Links whose target copies out of the source's pool by itself, between two workers of one host.

The source opens its pool to the target, names blocks in it, and keeps them until the target has copied them. Knows no
handoffs, and no kind of memory. Why the target pulls: a source that was stopped and goes on later cannot write into
blocks that are others' by then, as it never writes into any but its own.

What a target reads is whole, digest or not: it reports a chunk only after it could tell the source so, and a source's
``close`` shuts the connection down before it returns, hence before anybody may reuse the blocks.
"""

import copy
from dataclasses import replace
from typing import Self, TypedDict, Unpack

from twinpool.kv_transfer.link import CHUNK_BYTES, LinkEvents, Ticket
from twinpool.kv_transfer.pull_pool import PullMemory
from twinpool.kv_transfer.pull_receiver import PullReceiver
from twinpool.kv_transfer.pull_sender import PullSender
from twinpool.kv_transfer.pull_socket import listen_on_host
from twinpool.kv_transfer.pull_thread import Terms
from twinpool.model.kv_layout import KVLayout


class PullOptions(TypedDict, total=False):
    """What may be said of links that pull; defaults are in PullLinks."""

    why: str  # the kind was chosen, for people
    digest: bool  # whether senders take digests and receivers insist on them
    open_timeout_s: float  # for the two ends to meet
    chunk_timeout_s: float  # for one chunk
    chunk_bytes: int


class PullLinks:
    """Makes links to workers on this host (see Links)."""

    def __init__(
        self,
        memory: PullMemory,
        layout: KVLayout,
        *,
        default_chunk_bytes: int = CHUNK_BYTES,
        **options: Unpack[PullOptions],
    ) -> None:
        self.kind = memory.kind
        self.why = options.get("why", "")
        self.chunk_bytes = options.get("chunk_bytes", default_chunk_bytes)
        self._terms = Terms(
            layout,
            memory,
            options.get("digest", True),
            options.get("open_timeout_s", 10.0),
            options.get("chunk_timeout_s", 5.0),
            self.chunk_bytes,
        )

    def cut_at(self, chunk_bytes: int) -> Self:
        """The same links, with chunks of this size at most."""
        links = copy.copy(self)
        links.chunk_bytes = chunk_bytes
        links._terms = replace(self._terms, chunk_bytes=chunk_bytes)
        return links

    def listen(self, events: LinkEvents) -> tuple[PullReceiver, Ticket]:
        """See Links."""
        listener, ticket = listen_on_host()
        return PullReceiver(listener, ticket.secret, self._terms, events), ticket

    def dial(self, ticket: Ticket, events: LinkEvents) -> PullSender:
        """See Links."""
        return PullSender(ticket, self._terms, events)
