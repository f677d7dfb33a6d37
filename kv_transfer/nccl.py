"""Links between GPUs over torch.distributed's NCCL backend.

Written for NCCL's rules: messages match by order and carry no tag, sizes must be agreed, a send lasts until it is
matched, and the other end's death is no event: whoever waits goes on waiting until the group is aborted. Knows no
handoffs, leaves to group_links.py how the ends meet, and to an Accelerator what touches a device.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from twinpool.kv_transfer.chunk_wire import Cut, Wait
from twinpool.kv_transfer.cuda_accelerator import ABORT_TIMEOUT_S, abort_within
from twinpool.kv_transfer.group_links import SOURCE, GroupLinks, GroupOptions, first_line
from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.link_thread import NUM_SLOTS
from twinpool.kv_transfer.staging import Lane, StagingSlot
from twinpool.model.kv_layout import KVCache

if TYPE_CHECKING:
    import torch

_FIRST_POLL_S, _LAST_POLL_S = 50e-6, 1e-3  # a chunk takes 0.2 to 2 ms


class Work(Protocol):
    """A message under way, as torch.distributed has it."""

    def is_completed(self) -> bool:
        """Whether it is over: well, or not, or because its group was aborted."""
        ...

    def wait(self) -> Any:
        """Order the current stream behind it. Raises RuntimeError if it is known to have failed."""
        ...


class OrderedGroup(Protocol):
    """Two ranks that exchange messages in order, as ProcessGroupNCCL does. One thread uses an end."""

    def send(self, tensors: "list[torch.Tensor]", peer: int, tag: int) -> Work:
        """Post a message behind all that were posted before. Returns at once; the tag means nothing."""
        ...

    def recv(self, tensors: "list[torch.Tensor]", peer: int, tag: int) -> Work:
        """Post the buffer for the next message."""
        ...

    def abort(self) -> None:
        """End it. What was under way then counts as completed, whatever is in its buffers."""
        ...


class Accelerator(Protocol):
    """The device of this worker, as links use it."""

    identity: str  # of the physical device: equal only for one and the same

    def make_group(self, store: Any, rank: int, chunk_timeout_s: float) -> OrderedGroup:
        """Join the group of two whose ranks meet in ``store``, within the store's timeout.

        Raises:
            RuntimeError: the other rank did not come.
        """
        ...

    def make_lane(self) -> Lane:
        """Return memory and an order of execution for one end of one link."""
        ...


class NcclLinks(GroupLinks):
    """Makes NCCL links (see GroupLinks), each with a communicator of its own, from one device to another.

    Raises:
        ValueError: as GroupLinks does.
    """

    kind = "nccl"

    def __init__(self, cache: KVCache, host: str, accelerator: Accelerator, **options: Unpack[GroupOptions]) -> None:
        super().__init__(cache, host, **options)
        self._accelerator = accelerator

    def _connect(self, store: Any, rank: int, closing: threading.Event) -> "NcclWire":
        _refuse_one_device(store, rank, self._accelerator.identity)
        group = self._accelerator.make_group(store, rank, self._chunk_timeout_s)
        return NcclWire(group, 1 - rank, self._accelerator.make_lane(), self._chunk_timeout_s, closing)


class NcclWire:
    """A group of two, as a Wire. Header and data of a chunk are two messages, the data first.

    In this order, because an abort makes a message look completed: the header lands in a buffer that was cleared, so
    it arrives only if its own message did, and that ran only after all data before it.
    """

    cut: Cut | None = None

    def __init__(self, group: OrderedGroup, peer: int, lane: Lane, timeout_s: float, closing: threading.Event) -> None:
        self._group: OrderedGroup | None = group
        self._peer = peer
        self._lane = lane
        self._timeout_s = timeout_s
        self._closing = closing
        self._slots = [StagingSlot(lane) for _ in range(NUM_SLOTS)]

    def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
        """See Wire."""
        (data,) = parts
        slot = self._slots[chunk % NUM_SLOTS]
        with self._lane.in_order():
            slot.upload(header, data)
            works = self._post("send", slot.parts(len(header), len(data)))
        return partial(self._wait_sent, works)

    def receive(self, chunk: int, header: Bytes, parts: Sequence[Bytes], arrived: Callable[[Bytes], None]) -> Wait:
        """See Wire."""
        (data,) = parts
        slot = self._slots[chunk % NUM_SLOTS]
        with self._lane.in_order():
            slot.clear_header(len(header), len(data))
            works = self._post("recv", slot.parts(len(header), len(data)))
        return partial(self._wait_received, works, slot, header, data, arrived)

    def cancel(self) -> None:
        """See Wire. Never asked for: no message here lies in a block."""

    def close(self) -> None:
        """See Wire. Aborts the group, which alone ends messages that the other end does not match."""
        group, self._group = self._group, None
        slots, self._slots = self._slots, []
        if group is not None:
            abort_within(group, ABORT_TIMEOUT_S, slots.clear)  # only then does nothing write there any more

    def _post(self, name: str, parts: "tuple[torch.Tensor, torch.Tensor]") -> list[Work]:
        assert self._group is not None
        header, data = parts
        post = self._group.send if name == "send" else self._group.recv
        try:
            return [post([part], self._peer, 0) for part in (data, header)]
        except RuntimeError as error:
            raise LinkError(first_line(error)) from None

    def _wait_sent(self, works: list[Work]) -> None:
        self._wait_works(works, time.monotonic() + self._timeout_s)

    def _wait_received(
        self, works: list[Work], slot: StagingSlot, header: Bytes, data: Bytes, arrived: Callable[[Bytes], None]
    ) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        with self._lane.in_order():
            self._wait_works(works, deadline_s)
            has_landed = slot.start_download(len(header), len(data))
        self._poll(has_landed, deadline_s)
        slot.take(header, data)
        arrived(data)

    def _wait_works(self, works: list[Work], deadline_s: float) -> None:
        for work in works:
            try:
                self._poll(work.is_completed, deadline_s)
                work.wait()
            except RuntimeError as error:
                raise LinkError(first_line(error)) from None

    def _poll(self, is_over: Callable[[], bool], deadline_s: float) -> None:
        """Ask until it is: a wait on the device itself could not be ended."""
        pause_s = _FIRST_POLL_S
        while not is_over():
            if time.monotonic() >= deadline_s:
                raise LinkError(f"Timed out waiting {self._timeout_s:g} s for the other end")
            if self._closing.wait(pause_s):
                raise LinkError("the link was closed")
            pause_s = min(2 * pause_s, _LAST_POLL_S)


def _refuse_one_device(store: Any, rank: int, identity: str) -> None:
    """Tell the other rank which device this one has; NCCL may hang for ever between two ranks of one device.

    Raises:
        LinkError: both have the same.
        RuntimeError: the other rank did not come.
    """
    store.set(f"device of rank {rank}", identity)
    other: bytes = store.get(f"device of rank {1 - rank}")
    if other.decode(errors="replace") != identity:
        return
    if rank == SOURCE:
        store.set("the source knows", "")
    else:
        store.wait(["the source knows"])  # the store goes with this rank
    raise LinkError(f"nccl cannot link two workers on one GPU ({identity}): place them apart, or use another link")
