"""Links through memory that two workers of one host share: the target copies out of the source's pool by itself.

The source hands its pool over, sealed so that it can only be read, names blocks in it, and keeps them until the target
has copied them. Knows no handoffs. Why the target pulls: a source that was stopped and goes on later cannot write into
blocks that are others' by then, as it never writes into any but its own.

What a target reads is whole, digest or not: it reports a chunk only after it could tell the source so, and a source's
``close`` shuts the connection down before it returns, hence before anybody may reuse the blocks.
"""

from pathlib import Path

from twinpool.kv_transfer.link import CHUNK_BYTES, LinkEvents, Ticket
from twinpool.kv_transfer.shm_receiver import ShmReceiver
from twinpool.kv_transfer.shm_sender import ShmSender
from twinpool.kv_transfer.shm_socket import listen_on_host
from twinpool.kv_transfer.shm_thread import MAX_CHUNK_BLOCKS, Terms
from twinpool.model.kv_layout import KVCache


class ShmLinks:
    """Makes links to workers on this host (see Links).

    Args:
        digest: whether senders take digests and receivers insist on them.
        open_timeout_s: for the two ends to meet.
        chunk_timeout_s: for one chunk.

    Raises:
        ValueError: the cache's memory cannot be shared.
    """

    kind = "shm"

    def __init__(
        self,
        cache: KVCache,
        *,
        why: str = "",
        digest: bool = True,
        open_timeout_s: float = 10.0,
        chunk_timeout_s: float = 5.0,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        if cache.shared is None:
            raise ValueError("this worker's KV does not lie in memory that can be shared")
        chunk_bytes = min(chunk_bytes, MAX_CHUNK_BLOCKS * cache.layout.block_layer_bytes)
        self.why = why
        self._terms = Terms(cache, cache.shared, digest, open_timeout_s, chunk_timeout_s, chunk_bytes)

    def listen(self, events: LinkEvents) -> tuple[ShmReceiver, Ticket]:
        """See Links."""
        listener, ticket = listen_on_host()
        return ShmReceiver(listener, ticket.secret, self._terms, events), ticket

    def dial(self, ticket: Ticket, events: LinkEvents) -> ShmSender:
        """See Links."""
        return ShmSender(ticket, self._terms, events)


def host_identity() -> str:
    """Equal for two workers whose Unix sockets can meet: one kernel since its start, one network namespace.

    Empty where it cannot be told; then it equals nobody's. Clones of a virtual machine may share it, and then fail to
    meet.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/net").stat()
    except OSError:
        return ""
    return f"{boot}/{namespace.st_dev}:{namespace.st_ino}"
