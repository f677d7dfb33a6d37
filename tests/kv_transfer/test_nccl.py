"""What is NCCL's own, over a group that keeps its rules (strict_group.py): devices, aborts, and the environment."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from twinpool.kv_transfer.cuda_accelerator import (
    REQUIRED_ENVIRONMENT,
    CudaAccelerator,
    abort_within,
    settle_environment,
)
from twinpool.kv_transfer.header import HEADER_BYTES, ChunkHeader, HeaderError, handoff_id, is_intact, pack_header
from twinpool.kv_transfer.link import Link
from twinpool.kv_transfer.nccl import NcclLinks, NcclWire
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.staging import StagingSlot

from .fakes import WAIT_S, Ears, NumpyCache, make_group, wait_until
from .strict_group import HostLane, StrictAccelerator, StrictGroup

WHOLE = Span(0, 3, 0, 6)
HERE, THERE = [9, 3, 4, 0, 7, 30], [1, 2, 5, 8, 20, 11]


@dataclass
class WatchedAccelerator(StrictAccelerator):
    """Keeps its groups, so that a test can do to them what torch's watchdog may."""

    groups: list[StrictGroup] = field(default_factory=list)

    def make_group(self, store: Any, rank: int, chunk_timeout_s: float) -> StrictGroup:
        self.groups.append(super().make_group(store, rank, chunk_timeout_s))
        return self.groups[-1]


class Pair:
    """A link from one device to another."""

    def __init__(self, devices: tuple[str, str]) -> None:
        self.accelerators = [WatchedAccelerator(device) for device in devices]
        self.caches = [NumpyCache(seed=1), NumpyCache(seed=2)]
        here, there = (
            NcclLinks(cache, "127.0.0.1", accelerator, open_timeout_s=WAIT_S, chunk_timeout_s=1000.0)
            for cache, accelerator in zip(self.caches, self.accelerators, strict=True)
        )
        self.sent, self.received = Ears(), Ears()
        self.receiver, ticket = there.listen(self.received)
        self.sender = here.dial(ticket, self.sent)

    def close(self) -> None:
        links: list[Link] = [self.sender, self.receiver]
        for link in links:
            link.close()
        for link in links:
            assert link.join(WAIT_S)


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(*devices: str) -> Pair:
        made.append(Pair((devices[0], devices[1])))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.mark.slow
def test_two_workers_on_one_gpu_are_refused_by_its_name_at_both_ends(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair("GPU-77", "GPU-77")
    for ears in (pair.sent, pair.received):
        kind, reason = ears.next()
        assert kind == "error"
        assert "one GPU (GPU-77)" in str(reason)
    assert not any(accelerator.groups for accelerator in pair.accelerators)


@dataclass
class LoneGroup:
    """One end of a group whose other end matches the first so many messages, and then is gone."""

    num_matched: int
    sent: list[torch.Tensor] = field(default_factory=list)  # what the other end has to send
    is_aborted: bool = False

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> "LoneGroup":
        raise AssertionError("the test receives only")

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> "LoneGroup":
        message = self.sent.pop(0)
        if self.num_matched:
            self.num_matched -= 1
            tensors[0].copy_(message)
        return self

    def is_completed(self) -> bool:
        return True  # as after an abort, which torch's watchdog may do behind our back

    def wait(self) -> bool:
        return True

    def abort(self) -> None:
        self.is_aborted = True


class StaleLane(HostLane):
    """Gives memory that holds the very chunk that is awaited, from a link before."""

    def __init__(self, left: bytes) -> None:
        self.left = left

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.frombuffer(bytearray(self.left), dtype=torch.uint8).clone()


@pytest.mark.parametrize(("num_matched", "is_accepted"), [(0, False), (1, False), (2, True)])
def test_a_message_that_an_abort_makes_look_completed_is_not_taken_for_one(num_matched: int, is_accepted: bool) -> None:
    announced = ChunkHeader(handoff_id("r"), 1, 0, 40, b"")
    header, data = np.zeros(HEADER_BYTES, dtype=np.uint8), np.zeros(40, dtype=np.uint8)
    pack_header(announced, header)
    lane = StaleLane(bytes(40) + header.tobytes())
    group = LoneGroup(num_matched, [torch.ones(40, dtype=torch.uint8), torch.from_numpy(header.copy())])
    wire = NcclWire(group, 0, lane, 1000.0, threading.Event())
    wire.receive(0, header, [data], lambda _: None)()
    if is_accepted:
        assert is_intact(header, data, announced, needs_digest=False)
        assert data.all()
    else:
        with pytest.raises(HeaderError):
            is_intact(header, data, announced, needs_digest=False)
    wire.close()
    wire.close()
    assert group.is_aborted


@pytest.mark.slow
def test_an_abort_behind_the_links_back_is_an_error(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair("GPU-0", "GPU-1")
    pair.receiver.receive(make_group(0, WHOLE, THERE))
    wait_until(lambda: bool(pair.accelerators[1].groups) and len(pair.accelerators[1].groups[0]._under_way) == 2)
    before = pair.caches[1].pool.copy()
    pair.accelerators[1].groups[0].abort()
    assert pair.received.until("error")
    assert np.array_equal(pair.caches[1].pool, before)


@pytest.mark.slow
def test_closing_ends_a_wait_that_has_long_to_go(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair("GPU-0", "GPU-1")
    assert (pair.sent.next(), pair.received.next()) == (("open",), ("open",))
    pair.receiver.receive(make_group(0, WHOLE, THERE))
    pair.sender.send(make_group(0, WHOLE, HERE))
    pair.sender.send(make_group(1, WHOLE, HERE))  # nobody receives it
    assert pair.sent.next() == ("sent", 0)
    pair.sender.close()
    assert pair.sender.join(WAIT_S)
    assert pair.sent.heard[2:] == [("closed",)]


class HangingGroup:
    """A group whose abort takes until it is let go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def abort(self) -> None:
        assert self.go_on.wait(WAIT_S)


def test_an_abort_that_hangs_is_left_alone_and_its_memory_is_kept_until_it_is_over() -> None:
    group, over = HangingGroup(), threading.Event()
    abort_within(group, 0.01, over.set)
    assert not over.is_set()
    group.go_on.set()
    assert over.wait(WAIT_S)


def test_an_abort_that_fails_keeps_its_memory_and_disturbs_nobody() -> None:
    class FailingGroup:
        def abort(self) -> None:
            raise RuntimeError("NCCL error")

    over = threading.Event()
    abort_within(FailingGroup(), WAIT_S, over.set)
    assert not over.is_set()


class Memory:
    """What a message may still write to."""

    def clear(self) -> None:
        raise AssertionError("a message may still write there")


def test_memory_of_a_group_that_could_not_be_aborted_is_never_used_for_anything_else() -> None:
    class FailingGroup:
        def abort(self) -> None:
            raise RuntimeError("NCCL error")

    group, memory = FailingGroup(), Memory()
    kept = weakref.ref(group), weakref.ref(memory)
    abort_within(group, WAIT_S, memory.clear)
    del group, memory
    gc.collect()
    assert None not in [reference() for reference in kept]


def test_without_a_gpu_nccl_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="nccl needs a GPU"):
        CudaAccelerator(10_000, environ={})


def test_what_keeps_a_dead_peer_from_ending_this_process_is_set() -> None:
    environ = {"PATH": "/bin", "TORCH_NCCL_NONBLOCKING_TIMEOUT": "9"}
    settle_environment(environ, open_timeout_s=2.5)
    assert environ.items() >= REQUIRED_ENVIRONMENT.items()
    assert (environ["PATH"], environ["TORCH_NCCL_NONBLOCKING_TIMEOUT"]) == ("/bin", "9")
    settle_environment(environ, open_timeout_s=2.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", ""),
        ("NCCL_ASYNC_ERROR_HANDLING", "1"),
        ("TORCH_NCCL_ENABLE_MONITORING", "1"),
    ],
)
def test_a_setting_that_would_end_this_process_is_refused_by_name_and_none_is_changed(name: str, value: str) -> None:
    environ = {name: value}
    with pytest.raises(ValueError, match=f"nccl needs {name}=[02], not {value}:"):
        settle_environment(environ, open_timeout_s=1.0)
    assert environ == {name: value}


@pytest.mark.parametrize("sizes", [(8, 8), (8, 100), (100, 8)])
def test_a_staged_chunk_comes_back_as_it_was_whatever_size_went_before(sizes: tuple[int, int]) -> None:
    slot = StagingSlot(HostLane())
    for size in sizes:
        header, data = np.arange(16, dtype=np.uint8), np.arange(size, dtype=np.uint8) + 100
        slot.upload(header, data)
        back_header, back_data = np.zeros_like(header), np.zeros_like(data)
        assert slot.start_download(len(header), len(data))()
        slot.take(back_header, back_data)
        assert np.array_equal(header, back_header)
        assert np.array_equal(data, back_data)
        slot.clear_header(len(header), len(data))
        on_device = [part.numpy() for part in slot.parts(len(header), len(data))]
        assert not on_device[0].any()
        assert np.array_equal(on_device[1], data)
