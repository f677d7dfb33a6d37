"""What is cuda_ipc's own, over a stand-in for a GPU (strict_ipc.py): keys, digests on the device, failures."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from twinpool.kv_transfer.cuda_ipc import CudaIpcLinks, DeviceMemory, OpenedBlocks, OwnBlocks, Staging
from twinpool.kv_transfer.cuda_ipc_key import KEY_BYTES, pack_key, parse_key
from twinpool.kv_transfer.device_pool import DevicePool, device_pool_of
from twinpool.kv_transfer.ipc_device import Run
from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.pull_pool import Part, PoolKey
from twinpool.model.kv_layout import HeadRange

from .conformance_worker import DeviceCache
from .fakes import LAYOUT, NumpyCache
from .strict_ipc import StrictIpcDevice, StrictLane, allocate_strict, strict_digest

HERE, THERE = [9, 3, 4, 0, 7, 30], [1, 2, 5, 8, 20, 11]


class CountingDevice(StrictIpcDevice):
    """Opens whatever it is asked to, as an allocation of this process."""

    num_open = 0

    def open(self, handle: bytes) -> Run:
        self.num_open += 1
        return Run(0, 1 << 20)

    def close(self, address: int) -> None:
        self.num_open -= 1


def part_of(ids: list[int], first: int = 0, end: int = 3, heads: HeadRange | None = None) -> Part:
    return Part(LAYOUT, np.array(ids, dtype=np.int64), first, end, heads)


def digest_of(cache: DeviceCache, part: Part) -> bytes:
    return OwnBlocks(cache.pool.data_ptr(), Staging(StrictLane(), strict_digest)).digest(part)


class Two:
    """A source's and a target's pool, and the target's view of the source's."""

    def __init__(self, lane: StrictLane | None = None) -> None:
        self.source, self.target = DeviceCache(1, allocate_strict), DeviceCache(2, allocate_strict)
        self.before = self.target.pool.clone()
        self.num_closed = 0
        source = Run(self.source.pool.data_ptr(), self.source.pool.numel())
        staging = Staging(lane or StrictLane(), strict_digest)
        self.opened = OpenedBlocks(source, self.target.pool.data_ptr(), staging, self._close)

    def _close(self) -> None:
        self.num_closed += 1

    @property
    def is_untouched(self) -> bool:
        return torch.equal(self.target.pool, self.before)


# --- Copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [None, HeadRange(0, 2), HeadRange(0, 1), HeadRange(1, 2)])
@pytest.mark.parametrize("checked", [True, False])
def test_what_is_copied_is_what_gather_and_scatter_would_move(heads: HeadRange | None, checked: bool) -> None:
    two, theirs, ours = Two(), part_of(HERE, 1, 3, heads), part_of(THERE, 1, 3, heads)
    expected = NumpyCache(seed=2)
    moved = np.empty(len(HERE) * 2 * LAYOUT.of_heads(heads).block_layer_bytes, dtype=np.uint8)
    NumpyCache(seed=1).gather(1, 3, theirs.block_ids, moved, heads)
    expected.scatter(1, 3, ours.block_ids, moved, heads)
    digest = digest_of(two.source, theirs) if checked else None
    assert two.opened.copy(theirs, ours, digest)
    assert np.array_equal(two.target.pool.numpy(), expected.pool)


def test_heads_and_layers_may_lie_elsewhere_in_the_sources_pool() -> None:
    two = Two()
    theirs, ours = part_of(HERE, 0, 1, HeadRange(1, 2)), part_of(THERE, 2, 3, HeadRange(0, 1))
    assert two.opened.copy(theirs, ours, digest_of(two.source, theirs))
    there = two.target.read(Span(2, 3, 0, 6), THERE, HeadRange(0, 1))
    assert np.array_equal(there, two.source.read(Span(0, 1, 0, 6), HERE, HeadRange(1, 2)))


def test_kv_that_fails_its_digest_reaches_no_block() -> None:
    two = Two()
    digest = digest_of(two.source, part_of(HERE))
    two.source.pool[HERE[2], 1, 7] ^= 1  # since
    assert not two.opened.copy(part_of(HERE), part_of(THERE), digest)
    assert two.is_untouched


def test_the_order_of_blocks_counts_in_a_digest() -> None:
    source = DeviceCache(1, allocate_strict)
    assert digest_of(source, part_of(HERE)) != digest_of(source, part_of(HERE[::-1]))
    assert len(digest_of(source, part_of(HERE))) == 16


class RefusingLane(StrictLane):
    """Refuses the n-th post of copies, after the first copy of it was taken."""

    def __init__(self, refused: int) -> None:
        super().__init__()
        self._left = refused

    def copy(self, targets: Sequence[Run], sources: Sequence[Run]) -> None:
        self._left -= 1
        if self._left < 0:
            super().copy(targets[:1], [replace(sources[0], num_bytes=targets[0].num_bytes)])
            raise RuntimeError("CUDA error: invalid argument\nCompile with more patience")
        super().copy(targets, sources)


@pytest.mark.parametrize(("refused", "checked"), [(0, False), (1, True)])
def test_what_a_gpu_refuses_is_an_error_of_the_link_and_nothing_is_under_way_after_it(
    refused: int, checked: bool
) -> None:
    lane = RefusingLane(refused)
    two = Two(lane)
    digest = digest_of(two.source, part_of(HERE)) if checked else None
    with pytest.raises(LinkError, match=r"the GPU could not copy: CUDA error: invalid argument$"):
        two.opened.copy(part_of(HERE), part_of(THERE), digest)
    assert not any(memory.num_copies for memory in lane._process.memories.values())


def test_every_copy_is_over_when_the_call_returns_and_the_pool_is_let_go_once() -> None:
    lane = StrictLane()
    two = Two(lane)
    for _ in range(3):
        assert two.opened.copy(part_of(HERE), part_of(THERE), None)
        assert not any(memory.num_copies for memory in lane._process.memories.values())
    two.opened.close()
    assert two.num_closed == 1


# --- Keys -----------------------------------------------------------------------------------------------------------


def make_memory(device: StrictIpcDevice | None = None) -> DeviceMemory:
    pool = device_pool_of(DeviceCache(1, allocate_strict))
    assert pool is not None
    return DeviceMemory(pool, LAYOUT, device or StrictIpcDevice(), strict_digest)


def test_a_key_names_the_place_of_the_pool_in_its_allocation() -> None:
    key = parse_key(make_memory().key().plain)
    assert (key.offset, key.num_bytes) == (768, 32 * LAYOUT.block_bytes)
    assert parse_key(make_memory().key().plain).pool_id != key.pool_id


def test_a_worker_does_not_open_its_own_pool() -> None:
    memory = make_memory()
    with pytest.raises(LinkError, match="it is our own"):
        memory.reach(memory.key())


def test_a_worker_of_the_same_process_is_refused_as_cuda_does() -> None:
    with pytest.raises(LinkError, match="cannot open the source's pool: invalid device context"):
        make_memory().reach(make_memory().key())


@pytest.mark.parametrize(
    ("offset", "num_bytes", "why"),
    [
        (0, 0, "not of blocks"),
        (0, 32 * LAYOUT.block_bytes - 1, "not of blocks"),
        (0, 1 << 30, "a pool of 1073741824 bytes at 0 in 1048576"),
        ((1 << 20) - 256, 512, "in 1048576"),
    ],
)
def test_memory_that_is_no_pool_is_refused_and_closed_again(offset: int, num_bytes: int, why: str) -> None:
    device = CountingDevice()
    theirs = parse_key(make_memory().key().plain)
    lie = pack_key(replace(theirs, offset=offset, num_bytes=num_bytes))
    with pytest.raises(LinkError, match=why):
        make_memory(device).reach(PoolKey(lie))
    assert device.num_open == 0


@pytest.mark.parametrize("plain", [b"", b"\0" * KEY_BYTES, b"\x80\x04K\x01." * 32])
def test_bytes_that_are_no_key_open_nothing(plain: bytes) -> None:
    device = CountingDevice()
    with pytest.raises(LinkError, match="cannot open the source's pool: not"):
        make_memory(device).reach(PoolKey(plain))
    assert device.num_open == 0


# --- Workers that cannot have such links ----------------------------------------------------------------------------


def test_kv_in_host_memory_gives_no_links() -> None:
    with pytest.raises(ValueError, match="does not lie on a GPU"):
        CudaIpcLinks(NumpyCache(), StrictIpcDevice(), strict_digest)


def test_memory_that_others_cannot_open_gives_no_links() -> None:
    cache = DeviceCache(1, allocate_strict)
    cache.device_pool = DevicePool(torch.zeros(cache.pool.shape, dtype=torch.uint8), 0)
    with pytest.raises(ValueError, match="cannot be shown to others"):
        CudaIpcLinks(cache, StrictIpcDevice(), strict_digest)


def test_digests_that_nothing_takes_are_refused_and_can_be_done_without() -> None:
    cache = DeviceCache(1, allocate_strict)
    with pytest.raises(ValueError, match=r"nothing takes digests.*transfer\.digest: false"):
        CudaIpcLinks(cache, StrictIpcDevice(), None)
    assert CudaIpcLinks(cache, StrictIpcDevice(), None, digest=False).kind == "cuda_ipc"
