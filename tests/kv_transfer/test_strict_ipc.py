"""The stand-in for a GPU keeps CUDA IPC's rules; otherwise what passes over it would prove nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from twinpool.kv_transfer.ipc_device import Run

from .fakes import wait_until
from .strict_ipc import BEFORE_BYTES, StrictIpcDevice, StrictLane, allocate_strict, strict_digest

pytestmark = pytest.mark.slow  # processes

ROOT = Path(__file__).resolve().parent.parent.parent
EXPORTER = """
import sys, torch
from tests.kv_transfer.strict_ipc import StrictIpcDevice, allocate_strict
tensor = allocate_strict(100)
tensor.copy_(torch.arange(100, dtype=torch.uint8))
handle, offset = StrictIpcDevice().export(tensor[10:20])
print(handle.hex(), offset, flush=True)
sys.stdin.read()
"""


class Exporter:
    """Another process, with 100 bytes on the device."""

    def __init__(self) -> None:
        path = os.pathsep.join((str(ROOT), str(ROOT / "src")))
        self.process = subprocess.Popen(
            [sys.executable, "-c", EXPORTER],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        handle, offset = self.process.stdout.readline().split()
        self.handle, self.offset = bytes.fromhex(handle.decode()), int(offset)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    started = Exporter()
    yield started
    started.end()


def settle(lane: StrictLane) -> None:
    with lane.in_order():
        wait_until(lane.mark())


def test_a_handle_names_the_whole_allocation_and_is_opened_once(exporter: Exporter) -> None:
    device, lane = StrictIpcDevice(), StrictLane()
    assert exporter.offset == BEFORE_BYTES + 10
    allocation = device.open(exporter.handle)
    with pytest.raises(RuntimeError, match="is open"):
        device.open(exporter.handle)
    ours = allocate_strict(10)
    with lane.in_order():
        lane.copy([Run(ours.data_ptr(), 10)], [Run(allocation.address + exporter.offset, 10)])
    settle(lane)
    assert ours.tolist() == list(range(10, 20))
    device.close(allocation.address)
    device.close(device.open(exporter.handle).address)


def test_a_handle_cannot_be_opened_in_the_process_that_made_it() -> None:
    handle, _ = StrictIpcDevice().export(allocate_strict(10))
    with pytest.raises(RuntimeError, match="of this process"):
        StrictIpcDevice().open(handle)


def test_other_memory_has_no_handle() -> None:
    with pytest.raises(ValueError, match="cannot be shown"):
        StrictIpcDevice().export(torch.zeros(10, dtype=torch.uint8))


def test_copies_run_later_and_in_order() -> None:
    lane, first, second = StrictLane(), allocate_strict(4), allocate_strict(4)
    first.copy_(torch.tensor([1, 2, 3, 4], dtype=torch.uint8))
    with lane.in_order():
        for target, source in ((second, first), (first, second)):
            lane.copy([Run(target.data_ptr(), 4)], [Run(source.data_ptr(), 4)])
        is_over = lane.mark()
        assert not is_over()
        before = strict_digest(first.clone())
        assert strict_digest(second) == before
        assert is_over()


def test_nobody_reads_or_writes_beside_what_it_may(exporter: Exporter) -> None:
    device, lane, ours = StrictIpcDevice(), StrictLane(), allocate_strict(10)
    theirs = device.open(exporter.handle)
    end = theirs.address + theirs.num_bytes
    with lane.in_order():
        with pytest.raises(RuntimeError, match="illegal memory access"):
            lane.copy([Run(ours.data_ptr(), 10)], [Run(end - 9, 10)])
        with pytest.raises(AssertionError, match="its own memory only"):
            lane.copy([Run(theirs.address, 10)], [Run(ours.data_ptr(), 10)])
    with pytest.raises(AssertionError, match="outside the lane"):
        lane.copy([Run(ours.data_ptr(), 10)], [Run(ours.data_ptr(), 10)])
    device.close(theirs.address)


def test_closing_under_a_copy_is_a_crash(exporter: Exporter) -> None:
    device, lane, ours = StrictIpcDevice(), StrictLane(), allocate_strict(10)
    theirs = device.open(exporter.handle)
    with lane.in_order():
        lane.copy([Run(ours.data_ptr(), 10)], [Run(theirs.address, 10)])
        with pytest.raises(AssertionError, match="still reads it"):
            device.close(theirs.address)
    settle(lane)
    device.close(theirs.address)


def test_a_dead_exporters_memory_means_nothing_and_the_lane_is_lost() -> None:
    exporter, device, lane, ours = Exporter(), StrictIpcDevice(), StrictLane(), allocate_strict(10)
    theirs = device.open(exporter.handle)
    exporter.end()
    with lane.in_order():
        lane.copy([Run(ours.data_ptr(), 10)], [Run(theirs.address, 10)])
        is_over = lane.mark()
        with pytest.raises(RuntimeError, match="illegal memory access"):
            wait_until(is_over)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            strict_digest(ours)
    device.close(theirs.address)
    with pytest.raises(RuntimeError, match="invalid resource handle"):
        device.open(exporter.handle)
