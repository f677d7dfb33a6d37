"""Links through memory that two workers of one host share: the target maps the source's pool, and copies out of it.

The source hands its pool over sealed, so that it can only be read. Knows no handoffs; pull_links.py says how the ends
meet and why the target pulls.
"""

from pathlib import Path
from typing import Unpack

from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.pull_links import PullLinks, PullOptions
from twinpool.kv_transfer.pull_pool import Part, PoolKey
from twinpool.kv_transfer.shm_copy import Pool, copy_blocks, digest_blocks
from twinpool.model.host_pool import PoolBytes, map_pool
from twinpool.model.kv_layout import KVCache
from twinpool.model.kv_part import view_part


class ShmLinks(PullLinks):
    """Makes links to workers on this host (see Links).

    Raises:
        ValueError: the cache's memory cannot be shared.
    """

    def __init__(self, cache: KVCache, **options: Unpack[PullOptions]) -> None:
        super().__init__(SharedMemory(cache), cache.layout, **options)


class SharedMemory:
    """Host memory (see PullMemory): its key is one descriptor, which is the cache's.

    Raises:
        ValueError: the cache's memory cannot be shared.
    """

    kind = "shm"
    key_bytes = 0
    num_fds = 1

    def __init__(self, cache: KVCache) -> None:
        if cache.shared is None:
            raise ValueError("this worker's KV does not lie in memory that can be shared")
        self._cache = cache  # the descriptor ends with it
        self._shared = cache.shared

    def key(self) -> PoolKey:
        """See PullMemory."""
        return PoolKey(fds=(self._shared.fd,))

    def own(self) -> "OwnBlocks":
        """See PullMemory."""
        return OwnBlocks(self._shared.blocks)

    def reach(self, key: PoolKey) -> "MappedBlocks":
        """See PullMemory."""
        layout = self._cache.layout
        try:
            memory = map_pool(key.fds[0])
        except (ValueError, OSError) as error:
            raise LinkError(f"cannot map the source's pool: {error}") from None
        head_bytes = layout.block_layer_bytes // layout.num_kv_heads  # the source may have other heads and layers
        if len(memory) % head_bytes:
            raise LinkError(f"the source's pool of {len(memory)} bytes is not of blocks of heads of {head_bytes}")
        return MappedBlocks(memory, self._shared.blocks)


class OwnBlocks:
    """See OwnPool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def digest(self, part: Part) -> bytes:
        """See OwnPool."""
        return digest_blocks(_view(self._pool, part), part.block_ids)


class MappedBlocks:
    """See RemotePool. What failed its digest lies in our blocks."""

    def __init__(self, theirs: PoolBytes, ours: Pool) -> None:
        self.num_bytes = len(theirs)
        self._theirs: PoolBytes | None = theirs
        self._ours = ours

    def copy(self, theirs: Part, ours: Part, expected: bytes | None) -> bool:
        """See RemotePool."""
        assert self._theirs is not None
        source = _view(self._theirs.reshape(-1, theirs.layout.block_bytes), theirs)
        target, digest = _view(self._ours, ours), expected is not None
        found = copy_blocks(source, theirs.block_ids, target, ours.block_ids, digest=digest)
        return expected is None or found == expected

    def close(self) -> None:
        """See RemotePool."""
        self._theirs = None  # unmaps it


def _view(blocks: Pool, part: Part) -> Pool:
    return view_part(blocks, part.layout, part.first_layer, part.end_layer, part.heads)


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
