"""Both ends of a link post buffers of the same sizes in the same order, from nothing but what was announced.

Transports rely on it: NCCL mixes messages up, and gloo ends the process, where a message and its buffer differ.
"""

import queue
import threading
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import BlockIds
from twinpool.kv_transfer.link_thread import ReceiveThread, SendThread, Wait
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

    posted: list[tuple[int, int, int]] = field(default_factory=list)  # number of the chunk, sizes of header and data
    queue: "queue.SimpleQueue[tuple[Bytes, Bytes]]" = field(default_factory=queue.SimpleQueue)

    def send(self, chunk: int, header: Bytes, data: Bytes) -> Wait:
        self.posted.append((chunk, len(header), len(data)))
        self.queue.put((header.copy(), data.copy()))
        return lambda: None

    def receive(self, chunk: int, header: Bytes, data: Bytes) -> Wait:
        self.posted.append((chunk, len(header), len(data)))

        def wait() -> None:
            header[:], data[:] = self.queue.get(timeout=WAIT_S)

        return wait

    def close(self) -> None:
        pass


@given(st.lists(SPANS, min_size=1, max_size=5), st.integers(1, 8000))
@settings(max_examples=50)
def test_both_ends_post_the_same_sizes_in_the_same_order(spans: list[Span], chunk_bytes: int) -> None:
    here, there = QueueWire(), QueueWire()
    there.queue = here.queue
    source, target, ears, other_ears = NumpyCache(seed=1), NumpyCache(seed=2), Ears(), Ears()
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
