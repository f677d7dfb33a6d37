"""Both ends of a link post buffers of the same sizes in the same order, from nothing but what was announced.

Transports rely on it: NCCL mixes messages up, and gloo ends the process, where a message and its buffer differ.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.kv_transfer.chunk_wire import Cut, Wait
from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import BlockIds
from twinpool.kv_transfer.link_thread import ReceiveThread, SendThread
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import HeadRange

from .fakes import WAIT_S, Ears, NumpyCache, make_group, wait_until

SPANS = st.builds(
    lambda layer, layers, block, blocks: Span(layer, min(3, layer + layers), block, block + blocks),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(1, 9),
)


@dataclass
class QueueWire:
    """A wire inside the process that notes what each end posted."""

    cut: Cut | None = None
    posted: list[tuple[int, ...]] = field(default_factory=list)  # number of the chunk, sizes of header and messages
    queue: "queue.SimpleQueue[tuple[Bytes, list[Bytes]]]" = field(default_factory=queue.SimpleQueue)
    num_cancels: int = 0

    def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
        sent = [part.copy() for part in parts]
        self.posted.append((chunk, len(header), *map(len, sent)))
        self.queue.put((header.copy(), sent))
        return lambda: None

    def receive(self, chunk: int, header: Bytes, parts: Sequence[Bytes], arrived: Callable[[Bytes], None]) -> Wait:
        self.posted.append((chunk, len(header), *map(len, parts)))

        def wait() -> None:
            header[:], sent = self.queue.get(timeout=WAIT_S)
            for part, data in zip(parts, sent, strict=True):
                part[:] = data
                arrived(part)

        return wait

    def cancel(self) -> None:
        self.num_cancels += 1

    def close(self) -> None:
        pass


CUTS = st.none() | st.builds(Cut, st.sampled_from([1, 600, 1100, 1 << 20]), st.integers(1, 8000))


@given(st.lists(SPANS, min_size=1, max_size=5), st.integers(1, 8000), CUTS, st.booleans(), st.booleans())
@settings(max_examples=60)
def test_both_ends_post_the_same_sizes_in_the_same_order(
    spans: list[Span], chunk_bytes: int, cut: Cut | None, source_shares: bool, target_shares: bool
) -> None:
    """Whether or not an end can send from its blocks, or receive into them."""
    here, there = QueueWire(cut), QueueWire(cut)
    there.queue = here.queue
    source, target = NumpyCache(seed=1, shared=source_shares), NumpyCache(seed=2, shared=target_shares)
    ears, other_ears = Ears(), Ears()
    sender = SendThread(lambda: here, source, other_ears, chunk_bytes=chunk_bytes)
    receiver = ReceiveThread(lambda: there, target, ears, chunk_bytes=chunk_bytes)
    try:
        for seq, span in enumerate(spans):
            ids = list(range(span.num_blocks))
            receiver.receive(make_group(seq, span, ids))
            sender.send(make_group(seq, span, ids))
        assert ears.next() == ("open",)
        assert [ears.next() for _ in spans] == [("received", seq, True) for seq in range(len(spans))]
    finally:
        for link in (sender, receiver):
            link.close()
            assert link.join(WAIT_S)
    assert here.posted == there.posted
    for span in spans:
        ids = list(range(span.num_blocks))
        assert np.array_equal(source.read(span, ids), target.read(span, ids))


def test_a_close_cancels_a_wire_that_still_has_blocks_and_no_other() -> None:
    class StuckWire(QueueWire):
        def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
            super().send(chunk, header, parts)
            return lambda: wait_until(lambda: going_on.is_set())

    for min_run_bytes, num_cancels in ((1, 1), (1 << 20, 0)):
        going_on, wire, ears = threading.Event(), StuckWire(Cut(min_run_bytes, 1000)), Ears()
        sender = SendThread(partial(lambda wire: wire, wire), NumpyCache(shared=True), ears)
        sender.send(make_group(0, Span(0, 3, 0, 2), [0, 1]))
        wait_until(lambda wire=wire: wire.posted)
        sender.close()
        assert wire.num_cancels == num_cancels
        going_on.set()
        assert sender.join(WAIT_S)


def test_a_wire_that_is_idle_is_not_cancelled() -> None:
    wire, ears = QueueWire(Cut(1, 1000)), Ears()
    sender = SendThread(lambda: wire, NumpyCache(shared=True), ears)
    sender.send(make_group(0, Span(0, 3, 0, 2), [0, 1]))
    assert ears.until("sent")
    sender.close()
    assert sender.join(WAIT_S)
    assert wire.num_cancels == 0


def test_a_close_that_waits_for_a_copy_lets_no_other_begin() -> None:
    class SlowCache(NumpyCache):
        num_copies = 0

        def gather(
            self, first_layer: int, end_layer: int, block_ids: BlockIds, out: Bytes, heads: HeadRange | None = None
        ) -> None:
            self.num_copies += 1
            if self.num_copies == 1:
                closing.start()
                wait_until(lambda: sender._is_closing)
            super().gather(first_layer, end_layer, block_ids, out, heads)

    cache, wire, ears = SlowCache(), QueueWire(), Ears()
    sender = SendThread(lambda: wire, cache, ears, chunk_bytes=1)
    closing = threading.Thread(target=sender.close)
    sender.send(make_group(0, Span(0, 3, 0, 4), [0, 1, 2, 3]))
    assert sender.join(WAIT_S)
    closing.join(WAIT_S)
    assert cache.num_copies == 1
    assert ears.heard == [("open",), ("closed",)]
