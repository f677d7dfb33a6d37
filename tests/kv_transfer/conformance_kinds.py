"""The kinds of link that the conformance suite runs over; a new kind is one more entry of ``KINDS``."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from twinpool.kv_transfer import pull_sender
from twinpool.kv_transfer.chunk_wire import Cut, Wait, Wire
from twinpool.kv_transfer.cuda_ipc import CudaIpcLinks
from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.group_links import GroupLinks
from twinpool.kv_transfer.header import Bytes, ChunkHeader
from twinpool.kv_transfer.link import Links
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.nccl import NcclLinks
from twinpool.kv_transfer.pull_links import PullLinks
from twinpool.kv_transfer.pull_pool import Part
from twinpool.kv_transfer.shm import ShmLinks
from twinpool.model.kv_layout import KVLayout

from .fakes import LAYOUT, NumpyCache
from .strict_group import StrictAccelerator
from .strict_ipc import StrictIpcDevice, allocate_strict, strict_digest

CHUNK_BYTES = 2 * 3 * 512 + 100  # two blocks of fakes.LAYOUT, and not three


@dataclass
class Setting:
    """What one worker's links are made for."""

    index: int = 0  # of the worker: 0 the source, 1 the target
    open_timeout_s: float = 20.0
    chunk_timeout_s: float = 20.0
    network: MemoryNetwork = field(default_factory=MemoryNetwork)  # between workers of one process


@dataclass(frozen=True)
class LinkKind:
    """One kind of link, and what is true of it alone."""

    make: Callable[[NumpyCache, Setting], Links]
    damage: Callable[[Links, Setting, str], None]  # the "header" or the "data" of what the next link sends first
    layout: KVLayout = LAYOUT
    has_processes: bool = True
    needs_processes: bool = False  # its two workers cannot share one
    allocate: Callable[[int], torch.Tensor] | None = None  # memory of a device, where KV lies; None: of the host
    shares_memory: bool = False
    writes_before_digest: bool = False  # what failed its digest lies in the blocks that were named for it, only there
    writes_before_header: bool = False  # likewise what is not the chunk that was announced, or is damaged
    long_message_kills: bool = False  # the receiving process


def make_memory(cache: NumpyCache, setting: Setting) -> Links:
    setting.network.timeout_s = min(setting.open_timeout_s, setting.chunk_timeout_s)
    return MemoryLinks(setting.network, cache)


def make_gloo(cache: NumpyCache, setting: Setting) -> Links:
    return GlooLinks(cache, "127.0.0.1", **timeouts(setting))


def make_gloo_direct(cache: NumpyCache, setting: Setting) -> Links:
    """Every block of the suite's small layout is long enough to be sent from, and received into, where it lies."""
    links = GlooLinks(cache, "127.0.0.1", **timeouts(setting))
    links.cut = Cut(min_run_bytes=1, message_bytes=1)
    return links


def make_gloo_in_messages(cache: NumpyCache, setting: Setting) -> Links:
    """Blocks are staged, and a chunk is several messages."""
    links = GlooLinks(cache, "127.0.0.1", **timeouts(setting))
    links.cut = Cut(min_run_bytes=1 << 40, message_bytes=1)
    return links


def make_gloo_as_it_is(cache: NumpyCache, setting: Setting) -> Links:
    """Chunks and messages of the sizes that workers use."""
    return GlooLinks(cache, "127.0.0.1", open_timeout_s=setting.open_timeout_s, chunk_timeout_s=setting.chunk_timeout_s)


def make_shm(cache: NumpyCache, setting: Setting) -> Links:
    return ShmLinks(cache, **timeouts(setting))


def make_strict_nccl(cache: NumpyCache, setting: Setting) -> Links:
    return NcclLinks(cache, "127.0.0.1", StrictAccelerator(f"GPU {setting.index}"), **timeouts(setting))


def make_nccl(cache: NumpyCache, setting: Setting) -> Links:
    from twinpool.kv_transfer.cuda_accelerator import CudaAccelerator

    return NcclLinks(cache, "127.0.0.1", CudaAccelerator(setting.index), **timeouts(setting))


def make_strict_cuda_ipc(cache: NumpyCache, setting: Setting) -> Links:
    return CudaIpcLinks(cache, StrictIpcDevice(), strict_digest, **timeouts(setting))


def make_cuda_ipc(cache: NumpyCache, setting: Setting) -> Links:
    from twinpool.kv_transfer.cuda_ipc_device import CudaIpcDevice
    from twinpool.kv_transfer.device_digest import digest_tensor

    return CudaIpcLinks(cache, CudaIpcDevice(0), digest_tensor, **timeouts(setting))


def allocate_cuda(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="cuda:0")


def timeouts(setting: Setting) -> dict[str, Any]:
    return {
        "open_timeout_s": setting.open_timeout_s,
        "chunk_timeout_s": setting.chunk_timeout_s,
        "chunk_bytes": CHUNK_BYTES,
    }


@dataclass
class DamagingWire:
    """A wire that flips one bit of the first thing that it sends."""

    wire: Wire
    part: str

    @property
    def cut(self) -> Cut | None:
        return self.wire.cut

    def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
        if self.part:
            parts = [part.copy() for part in parts]  # what is damaged is on the wire only
            {"header": header, "data": parts[0]}[self.part][20] ^= 1
            self.part = ""
        return self.wire.send(chunk, header, parts)

    def receive(self, chunk: int, header: Bytes, parts: Sequence[Bytes], arrived: Callable[[Bytes], None]) -> Wait:
        return self.wire.receive(chunk, header, parts, arrived)

    def cancel(self) -> None:
        self.wire.cancel()

    def close(self) -> None:
        self.wire.close()


def damage_wire(links: Links, setting: Setting, part: str) -> None:
    assert isinstance(links, GroupLinks)
    connect = links._connect

    def connect_damaged(store: Any, rank: int, closing: threading.Event) -> Wire:
        return DamagingWire(connect(store, rank, closing), part)

    links._connect = connect_damaged  # type: ignore[method-assign]


def damage_network(links: Links, setting: Setting, part: str) -> None:
    setting.network.inject({"header": Fault.MISLABEL, "data": Fault.CORRUPT}[part])


def damage_pull(links: Links, setting: Setting, part: str) -> None:
    """A wrong digest stands for wrong data: what was digested and what is copied are the same memory."""
    assert isinstance(links, PullLinks)
    if part == "header":
        pack = pull_sender.pack_header

        def pack_damaged(header: ChunkHeader, out: Bytes) -> None:
            pull_sender.pack_header = pack
            pack(header, out)
            out[20] ^= 1

        pull_sender.pack_header = pack_damaged
        return
    memory: Any = links._terms.memory
    own = memory.own

    def own_damaged() -> Any:
        memory.own, pool = own, own()
        digest = pool.digest

        def wrong(part: Part) -> bytes:
            pool.digest = digest
            return bytes(16)

        pool.digest = wrong
        return pool

    memory.own = own_damaged


over_group = partial(LinkKind, damage=damage_wire)
by_handle = partial(LinkKind, damage=damage_pull, needs_processes=True)

KINDS: Mapping[str, LinkKind] = {
    "memory": LinkKind(make_memory, damage_network, has_processes=False),
    "gloo": over_group(make_gloo, long_message_kills=True),
    "gloo-direct": over_group(make_gloo_direct, shares_memory=True, writes_before_header=True),
    "gloo-in-messages": over_group(make_gloo_in_messages),
    "shm": LinkKind(make_shm, damage_pull, shares_memory=True, writes_before_digest=True),
    "strict-nccl": over_group(make_strict_nccl),
    "strict-cuda-ipc": by_handle(make_strict_cuda_ipc, allocate=allocate_strict),
}
DEVICE_KINDS: Mapping[str, LinkKind] = {  # scripts/gpu_check runs these
    "nccl": over_group(make_nccl),
    "cuda-ipc": by_handle(make_cuda_ipc, allocate=allocate_cuda),
}
# 128 KiB in a layer of a block: all that is sent lies in blocks.
LARGE_LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, block_tokens=256, head_dim=32, dtype="float32", model="test")
LARGE_KINDS: Mapping[str, LinkKind] = {  # test_gloo_soak.py runs these
    "gloo-large": over_group(make_gloo_as_it_is, layout=LARGE_LAYOUT, shares_memory=True),
}


def find_kind(name: str) -> LinkKind:
    return {**KINDS, **DEVICE_KINDS, **LARGE_KINDS}[name]
