"""Links for `twinpool bench transfer`: those of production, with a meter on them, and a limiter where one is asked for.

Changes no byte and no order. Knows no handoff.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from twinpool.cluster.bench.transfer_case import Case
from twinpool.cluster.bench.transfer_rank_links import RankLinks
from twinpool.cluster.bench.transfer_ranks import RankedPool
from twinpool.kv_transfer.chunk_wire import Wait, Wire
from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.group_links import SOURCE
from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import LinkError, LinkEvents, Links, ReceiveLink, SendLink, Ticket
from twinpool.kv_transfer.rank_groups import RankGroups
from twinpool.kv_transfer.rank_shape import WorkerShape
from twinpool.kv_transfer.shm import ShmLinks
from twinpool.model.kv_layout import KVCache

HOST = "127.0.0.1"
BURST_BYTES = 64 << 10  # what the limited link lets through at once after it was idle
LIMITED_TIMEOUT_S = 60.0  # for one chunk

Times = tuple[float, float]  # began, ended, by time.monotonic


class TokenBucket:
    """When bytes have passed a link of a given rate. Time is an argument; from any thread."""

    def __init__(self, bytes_per_s: float, burst_bytes: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._bytes_per_s = bytes_per_s
        self._burst_s = burst_bytes / bytes_per_s
        self._free_at_s = float("-inf")

    def take(self, num_bytes: int, now_s: float) -> float:
        """Bytes are posted behind all those before; returns when the last of them has passed, ``now_s`` at least."""
        with self._lock:
            self._free_at_s = max(self._free_at_s, now_s - self._burst_s) + num_bytes / self._bytes_per_s
            return max(now_s, self._free_at_s)


class PacedWire:
    """The source's end of a wire that is only so fast: a chunk leaves when its last byte would arrive."""

    def __init__(self, wire: Wire, bucket: TokenBucket) -> None:
        self.cut = wire.cut
        self._wire = wire
        self._bucket = bucket
        self._queue: queue.SimpleQueue[tuple[float, Callable[[], Wait], Future[None]] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="paced-wire", daemon=True)
        self._thread.start()

    def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
        """See Wire."""
        ready = list(parts)
        due_s = self._bucket.take(len(header) + sum(map(len, ready)), time.monotonic())
        done: Future[None] = Future()
        self._queue.put((due_s, partial(self._wire.send, chunk, header, ready), done))
        return done.result

    def receive(self, chunk: int, header: Bytes, parts: Sequence[Bytes], arrived: Callable[[Bytes], None]) -> Wait:
        """See Wire."""
        return self._wire.receive(chunk, header, parts, arrived)

    def cancel(self) -> None:
        """See Wire."""
        self._wire.cancel()

    def close(self) -> None:
        """See Wire."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()
        self._wire.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            due_s, post, done = item
            try:
                if self._closing.wait(max(0.0, due_s - time.monotonic())):
                    raise LinkError("the link was closed")
                post()()
            except LinkError as error:
                done.set_exception(error)
            else:
                done.set_result(None)


class LimitedGlooLinks(GlooLinks):
    """Gloo links that let through what a bucket lets through, which they may share."""

    def __init__(self, cache: KVCache, host: str, bucket: TokenBucket, *, digest: bool) -> None:
        super().__init__(cache, host, digest=digest, chunk_timeout_s=LIMITED_TIMEOUT_S)
        self._bucket = bucket

    def _connect(self, store: Any, rank: int, closing: threading.Event) -> Any:
        wire = super()._connect(store, rank, closing)
        if rank != SOURCE:
            return wire
        return PacedWire(wire, self._bucket)


class _MeteredEvents:
    """LinkEvents that also notes when each group was on the link."""

    def __init__(self, inner: LinkEvents, times: list[Times]) -> None:
        self.on_open = inner.on_open
        self.on_received = inner.on_received
        self.on_error = inner.on_error
        self.on_closed = inner.on_closed
        self._on_sent = inner.on_sent
        self._times = times

    def on_sent(self, seq: int, started_s: float, ended_s: float) -> None:
        self._times.append((started_s, ended_s))
        self._on_sent(seq, started_s, ended_s)


class MeteredLinks:
    """Links of a kind, and in ``times`` when each group that was sent over them began and ended (see Links)."""

    def __init__(self, links: Links) -> None:
        self.kind = links.kind
        self.why = links.why
        self.times: list[Times] = []
        self._links = links

    def listen(self, events: LinkEvents) -> tuple[ReceiveLink, Ticket]:
        """See Links."""
        return self._links.listen(events)

    def dial(self, ticket: Ticket, events: LinkEvents) -> SendLink:
        """See Links."""
        return self._links.dial(ticket, _MeteredEvents(events, self.times))


def make_links(case: Case, pool: KVCache) -> MeteredLinks:
    """The links of a case, as a worker on this host makes them: one, or one for each pair of ranks.

    Raises:
        ValueError: this process cannot have such links.
    """
    limit = case.limit_bytes_per_s
    bucket = None if limit is None else TokenBucket(limit, BURST_BYTES)
    if case.is_of_single_ranks:
        return MeteredLinks(_make_one(case, pool, bucket))
    groups = RankGroups.between(pool.layout, WorkerShape(case.source_tp), WorkerShape(case.target_tp))
    caches = pool.ranks if isinstance(pool, RankedPool) else [pool]
    return MeteredLinks(RankLinks(groups, [_make_one(case, cache, bucket) for cache in caches]))


def _make_one(case: Case, cache: KVCache, bucket: TokenBucket | None) -> Links:
    if bucket is not None:
        return LimitedGlooLinks(cache, HOST, bucket, digest=case.digest)
    makers: dict[str, Callable[[], Links]] = {
        "gloo": lambda: GlooLinks(cache, HOST, digest=case.digest),
        "shm": lambda: ShmLinks(cache, digest=case.digest),
    }
    return makers[case.link]()
