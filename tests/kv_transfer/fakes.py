"""What the tests of links and endpoints share: a small KV cache in numpy, and ears for a link's events."""

import queue
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from twinpool.kv_transfer.link import Group, SourcePlace
from twinpool.kv_transfer.plan import Span
from twinpool.model.host_pool import HostPool
from twinpool.model.kv_layout import HeadRange, KVLayout, SharedKV

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, block_tokens=4, head_dim=8, dtype="float32", model="test")
WAIT_S = 20.0  # far over what anything here takes


class NumpyCache:
    """A KVCache whose contents are random and can be compared. ``shared``: other processes can be shown it."""

    def __init__(self, num_blocks: int = 32, seed: int = 0, layout: KVLayout = LAYOUT, *, shared: bool = False) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        shape = (num_blocks, layout.num_layers, layout.block_layer_bytes)
        self.pool = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        self.shared: SharedKV | None = None
        if shared:
            self.memory = HostPool(num_blocks * layout.block_bytes)
            self.memory.bytes[:] = self.pool.reshape(-1)
            self.pool = self.memory.bytes.reshape(shape)
            self.shared = SharedKV(self.pool, self.memory.fd)

    def gather(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: NDArray[np.int64],
        out: NDArray[np.uint8],
        heads: HeadRange | None = None,
    ) -> None:
        out[:] = self._part(first_layer, end_layer, heads)[block_ids].reshape(-1)

    def scatter(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: NDArray[np.int64],
        data: NDArray[np.uint8],
        heads: HeadRange | None = None,
    ) -> None:
        part = self._part(first_layer, end_layer, heads)
        part[block_ids] = data.reshape(len(block_ids), *part.shape[1:])

    def _part(self, first_layer: int, end_layer: int, heads: HeadRange | None) -> NDArray[np.uint8]:
        num_heads = self.layout.num_kv_heads
        pool = self.pool.reshape(self.num_blocks, self.layout.num_layers, 2, num_heads, -1)
        whole = heads or HeadRange(0, num_heads)
        return pool[:, first_layer:end_layer, :, whole.first : whole.end]

    def read(self, span: Span, block_ids: list[int], heads: HeadRange | None = None) -> NDArray[np.uint8]:
        return self._part(span.first_layer, span.end_layer, heads)[block_ids]


class Ears:
    """LinkEvents that can be waited for."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []
        self._queue: queue.Queue[tuple[object, ...]] = queue.Queue()

    def on_open(self) -> None:
        self._note("open")

    def on_sent(self, seq: int, started_s: float, ended_s: float) -> None:
        assert started_s <= ended_s
        self._note("sent", seq)

    def on_received(self, seq: int, digest_ok: bool) -> None:
        self._note("received", seq, digest_ok)

    def on_error(self, reason: str) -> None:
        self._note("error", reason)

    def on_closed(self) -> None:
        self._note("closed")

    def _note(self, *event: object) -> None:
        self.heard.append(event)
        self._queue.put(event)

    def next(self) -> tuple[object, ...]:
        """The next event."""
        return self._queue.get(timeout=WAIT_S)

    def until(self, name: str) -> tuple[object, ...]:
        """The next event of this name; those before it are skipped."""
        while True:
            event = self.next()
            if event[0] == name:
                return event


def make_group(
    seq: int,
    span: Span,
    block_ids: list[int] | None,
    request_id: str = "r",
    epoch: int = 1,
    heads: list[int] | None = None,
    place: list[int] | None = None,
) -> Group:
    """``heads`` are [first, end]; ``place``, for a target: first layer and [first, end] of heads there."""
    ids = None if block_ids is None else np.array(block_ids, dtype=np.int64)
    some = None if heads is None else HeadRange(*heads)
    source = None if place is None else SourcePlace(LAYOUT, place[0], HeadRange(*place[1:]))
    return Group(request_id, epoch, seq, span, ids, heads=some, source=source)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something that other threads bring about and nobody reports."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.005)
