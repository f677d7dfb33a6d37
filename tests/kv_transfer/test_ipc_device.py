"""A peer's allocation is opened once, however many links use it, and closed when the last one goes."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.cuda_ipc_key import IpcKey
from twinpool.kv_transfer.ipc_device import OpenAllocations, Run, paired

KEY = IpcKey(b"p" * 16, b"h" * 64, 100, 400)


@dataclass
class NotingDevice:
    """Opens allocations of 1000 bytes, each at an address of its own."""

    identity: str = "GPU-0"
    opened: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)

    def open(self, handle: bytes) -> Run:
        self.opened.append(5000 * (1 + len(self.opened)))
        return Run(self.opened[-1], 1000)

    def close(self, address: int) -> None:
        self.closed.append(address)


@pytest.fixture
def device() -> NotingDevice:
    return NotingDevice()


def test_links_to_one_source_share_what_is_open_and_the_last_closes_it(device: NotingDevice) -> None:
    allocations = OpenAllocations(device)  # type: ignore[arg-type]
    assert [allocations.open(KEY) for _ in range(3)] == [Run(5100, 400)] * 3
    assert device.opened == [5000]
    for _ in range(2):
        allocations.close(KEY)
    assert not device.closed
    allocations.close(KEY)
    assert device.closed == [5000]
    assert allocations.open(KEY) == Run(10_100, 400)


def test_a_pool_made_later_is_not_taken_for_one_whose_handle_is_alike(device: NotingDevice) -> None:
    allocations = OpenAllocations(device)  # type: ignore[arg-type]
    allocations.open(KEY)
    assert allocations.open(replace(KEY, pool_id=b"q" * 16)).address == 10_100


@pytest.mark.parametrize(("offset", "num_bytes"), [(0, 1001), (601, 400), (2**62, 1), (0, 2**62)])
def test_a_pool_that_reaches_out_of_its_allocation_is_refused_and_nothing_stays_open(
    device: NotingDevice, offset: int, num_bytes: int
) -> None:
    allocations = OpenAllocations(device)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in 1000"):
        allocations.open(replace(KEY, offset=offset, num_bytes=num_bytes))
    assert device.closed == device.opened == [5000]


def test_a_lie_about_a_pool_that_is_in_use_leaves_it_open(device: NotingDevice) -> None:
    allocations = OpenAllocations(device)  # type: ignore[arg-type]
    allocations.open(KEY)
    with pytest.raises(ValueError, match="in 1000"):
        allocations.open(replace(KEY, num_bytes=901))
    assert not device.closed
    allocations.close(KEY)
    assert device.closed == [5000]


@given(st.lists(st.integers(1, 9), max_size=8), st.data())
def test_copies_are_cut_where_either_side_ends(sizes: list[int], data: st.DataObject) -> None:
    others, left = list[int](), sum(sizes)
    while left:
        others.append(data.draw(st.integers(1, left)))
        left -= others[-1]

    def place(lengths: list[int], start: int) -> tuple[list[Run], list[int]]:
        runs = [Run(start + 100 * place, length) for place, length in enumerate(lengths)]
        return runs, [run.address + i for run in runs for i in range(run.num_bytes)]

    targets, to_addresses = place(sizes, 0)
    sources, from_addresses = place(others, 10_000)
    moved = {to + i: start + i for to, start, size in paired(targets, sources) for i in range(size)}
    assert moved == dict(zip(to_addresses, from_addresses, strict=True))
