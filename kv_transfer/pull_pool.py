"""What a link that pulls needs of memory: a pool to offer blocks of, and a peer's pool that can be copied out of.

Knows no socket and no handoff. Shared memory (shm.py) and a GPU's (cuda_ipc.py) are such memory.
"""

from dataclasses import dataclass
from typing import Protocol

from twinpool.kv_transfer.link import BlockIds
from twinpool.model.kv_layout import HeadRange, KVLayout


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Layers ``[first_layer, end_layer)`` and heads of some blocks of a pool, block by block."""

    layout: KVLayout  # of the pool, which at the source may be of another shape than ours (see SourcePlace)
    block_ids: BlockIds
    first_layer: int
    end_layer: int
    heads: HeadRange | None = None  # of the pool's; None: all


@dataclass(frozen=True, slots=True)
class PoolKey:
    """What opens a worker's pool to a process of the same host: plain bytes, and descriptors."""

    plain: bytes = b""
    fds: tuple[int, ...] = ()


class OwnPool(Protocol):
    """This worker's pool, as one link's source offers it. One thread uses it."""

    def digest(self, part: Part) -> bytes:
        """Of the bytes in the part, in their order, as ``RemotePool.copy`` takes it: 16 bytes."""
        ...


class RemotePool(Protocol):
    """A source's pool, as one link's target sees it. One thread uses it."""

    num_bytes: int

    def copy(self, theirs: Part, ours: Part, expected: bytes | None) -> bool:
        """Copy a part, whose ids were checked, into as many blocks of our own; over on return, whatever happens.

        Args:
            expected: the digest that the bytes must have; None: any will do.

        Returns:
            Whether they have it. If not, our part may hold them or what it held before, and nothing else was touched.

        Raises:
            LinkError: the memory cannot be read any more.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class PullMemory(Protocol):
    """A kind of memory that others of this host can copy out of, and this worker's pool in it. From any thread."""

    kind: str
    key_bytes: int  # of PoolKey.plain
    num_fds: int

    def key(self) -> PoolKey:
        """Return what opens this worker's pool to a peer. Raises LinkError."""
        ...

    def own(self) -> OwnPool:
        """Return this worker's pool, for one link."""
        ...

    def reach(self, key: PoolKey) -> RemotePool:
        """Open a source's pool. The descriptors stay the caller's.

        Raises:
            LinkError: the key is none, or the pool cannot be of blocks of this model. Nothing is left open.
        """
        ...
