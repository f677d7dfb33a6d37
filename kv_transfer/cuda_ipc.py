"""Links between two workers of one host whose KV lies on GPUs, also on the same one: the target copies by itself.

The target opens the source's pool by its CUDA IPC handle and copies on a stream of its own. Knows no handoffs;
pull_links.py says how the ends meet and why the target pulls, and an IpcDevice is what touches a GPU.

With digests a chunk is first copied into memory that nobody else sees, digested there, and only then put into its
blocks, so KV that failed its digest is never in a block. Every call is over on return: a device's copy cannot be called
off, so blocks stay with it until it ends, which it does, or else the device itself has failed and says so.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, Unpack

from twinpool.kv_transfer.cuda_ipc_key import KEY_BYTES, POOL_ID_BYTES, IpcKey, KeyRefused, pack_key, parse_key
from twinpool.kv_transfer.device_pool import DevicePool, device_pool_of
from twinpool.kv_transfer.group_links import first_line
from twinpool.kv_transfer.header import DIGEST_BYTES
from twinpool.kv_transfer.ipc_device import CopyLane, DigestTensor, IpcDevice, OpenAllocations, Run
from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.pull_links import PullLinks, PullOptions
from twinpool.kv_transfer.pull_pool import Part, PoolKey
from twinpool.model.kv_layout import KVCache, KVLayout

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 16 << 20  # a chunk costs two messages on a socket, in which a GPU copies more than elsewhere a chunk has
T = TypeVar("T")

_FIRST_POLL_S, _LAST_POLL_S = 20e-6, 1e-3


class CudaIpcLinks(PullLinks):
    """Makes links to workers on this host (see Links).

    Args:
        digest_tensor: what takes digests, on the device; None: nothing does.

    Raises:
        ValueError: KV does not lie on a GPU, or in memory of one that others cannot open, or digests are asked for and
            nothing takes them.
    """

    def __init__(
        self, cache: KVCache, device: IpcDevice, digest_tensor: DigestTensor | None, **options: Unpack[PullOptions]
    ) -> None:
        pool = device_pool_of(cache)
        if pool is None:
            raise ValueError("this worker's KV does not lie on a GPU")
        if options.get("digest", True) and digest_tensor is None:
            raise ValueError("nothing takes digests on this GPU; transfer.digest: false does without")
        memory = DeviceMemory(pool, cache.layout, device, digest_tensor)
        super().__init__(memory, cache.layout, default_chunk_bytes=CHUNK_BYTES, **options)


class DeviceMemory:
    """A GPU's memory (see PullMemory): its key is an IPC handle, and where in that allocation the pool lies."""

    kind = "cuda_ipc"
    key_bytes = KEY_BYTES
    num_fds = 0

    def __init__(
        self, pool: DevicePool, layout: KVLayout, device: IpcDevice, digest_tensor: DigestTensor | None
    ) -> None:
        handle, offset = device.export(pool.tensor)
        num_bytes = pool.tensor.numel()
        self._key = IpcKey(secrets.token_bytes(POOL_ID_BYTES), handle, offset, num_bytes)
        self._pool = pool  # the allocation ends with it
        self._run = Run(pool.tensor.data_ptr(), num_bytes)
        self._layout = layout
        self._device = device
        self._opened = OpenAllocations(device)
        self._digest_tensor = digest_tensor

    def key(self) -> PoolKey:
        """See PullMemory."""
        return PoolKey(pack_key(self._key))

    def own(self) -> "OwnBlocks":
        """See PullMemory."""
        return OwnBlocks(self._run.address, Staging(self._device.make_lane(), self._digest_tensor))

    def reach(self, key: PoolKey) -> "OpenedBlocks":
        """See PullMemory."""
        try:
            theirs = parse_key(key.plain)
        except KeyRefused as error:
            raise LinkError(f"cannot open the source's pool: {error}") from None
        if theirs.pool_id == self._key.pool_id:
            raise LinkError("cannot open the source's pool: it is our own")
        tile_bytes = self._layout.block_layer_bytes // self._layout.num_kv_heads
        if not theirs.num_bytes or theirs.num_bytes % tile_bytes:
            raise LinkError(f"the source's pool of {theirs.num_bytes} bytes is not of blocks of heads of {tile_bytes}")
        try:
            source = self._opened.open(theirs)
        except (RuntimeError, ValueError) as error:
            raise LinkError(f"cannot open the source's pool: {first_line(error)}") from None
        staging = Staging(self._device.make_lane(), self._digest_tensor)
        return OpenedBlocks(source, self._run.address, staging, lambda: self._opened.close(theirs))


class Staging:
    """A lane, and memory on the device for one chunk. One thread uses it; all calls within ``lane.in_order``."""

    def __init__(self, lane: CopyLane, digest_tensor: DigestTensor | None) -> None:
        self.lane = lane
        self._digest_tensor = digest_tensor
        self._memory: torch.Tensor | None = None

    def fill(self, sources: list[Run]) -> Run:
        """Post the copy of these bytes into the memory."""
        num_bytes = sum(run.num_bytes for run in sources)
        if self._memory is None or self._memory.numel() < num_bytes:
            self._memory = self.lane.allocate(num_bytes)
        staged = Run(self._memory.data_ptr(), num_bytes)
        self.lane.copy([staged], sources)
        return staged

    def digest(self, staged: Run) -> bytes:
        """Of what was filled in last; waits for it."""
        assert self._memory is not None
        assert self._digest_tensor is not None
        number = self._digest_tensor(self._memory[: staged.num_bytes])
        return number.to_bytes(DIGEST_BYTES, "little")

    def settle(self) -> None:
        """Wait until nothing that was posted is under way. Raises RuntimeError when the device has failed."""
        is_over, pause_s = self.lane.mark(), _FIRST_POLL_S
        while not is_over():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_POLL_S)


class OwnBlocks:
    """See OwnPool."""

    def __init__(self, address: int, staging: Staging) -> None:
        self._address = address
        self._staging = staging

    def digest(self, part: Part) -> bytes:
        """See OwnPool."""

        def run() -> bytes:
            return self._staging.digest(self._staging.fill(list(runs_of(part, self._address))))

        return _perform(self._staging, run)


class OpenedBlocks:
    """See RemotePool."""

    def __init__(self, source: Run, our_address: int, staging: Staging, let_go: Callable[[], None]) -> None:
        self.num_bytes = source.num_bytes
        self._their_address = source.address
        self._our_address = our_address
        self._staging = staging
        self._let_go = let_go

    def copy(self, theirs: Part, ours: Part, expected: bytes | None) -> bool:
        """See RemotePool."""
        sources = list(runs_of(theirs, self._their_address))
        targets = list(runs_of(ours, self._our_address))

        def run() -> bool:
            if expected is None:
                self._staging.lane.copy(targets, sources)
                return True
            staged = self._staging.fill(sources)
            if self._staging.digest(staged) != expected:
                return False
            self._staging.lane.copy(targets, [staged])
            return True

        return _perform(self._staging, run)

    def close(self) -> None:
        """See RemotePool."""
        self._let_go()


def _perform(staging: Staging, run: Callable[[], T]) -> T:
    """Post what ``run`` posts, and return when all of it is over, well or not."""
    with staging.lane.in_order():
        try:
            done = run()
            staging.settle()
        except RuntimeError as error:
            with suppress(RuntimeError):
                staging.settle()
            raise LinkError(f"the GPU could not copy: {first_line(error)}") from None
    return done


def runs_of(part: Part, address: int) -> Iterator[Run]:
    """The bytes of a part, in the order that links have, of a pool at this address; as few runs as they lie in."""
    layout, first = part.layout, part.first_layer
    num_layers = part.end_layer - first
    row_bytes = layout.block_layer_bytes
    all_heads = layout.of_heads(part.heads) is layout
    side_bytes = row_bytes // 2  # keys, or values
    head_bytes = side_bytes // layout.num_kv_heads
    for block in part.block_ids.tolist():
        start = address + block * layout.block_bytes + first * row_bytes
        if all_heads:
            yield Run(start, num_layers * row_bytes)
            continue
        assert part.heads is not None
        skipped, num_bytes = part.heads.first * head_bytes, (part.heads.end - part.heads.first) * head_bytes
        for side in range(2 * num_layers):
            yield Run(start + side * side_bytes + skipped, num_bytes)
