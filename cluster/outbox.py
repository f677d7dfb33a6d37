"""What a worker has to say to one gateway: one message at a time, however many steps it took to be read.

A gateway that reads slowly gets fewer, larger messages, up to a size; nothing waits for it, and nothing is dropped but
news of the prefix cache, whose loss shows (see cache_feed.py).
"""

import asyncio
from collections import deque
from collections.abc import Mapping

from twinpool.cluster.cache_feed import CacheFeed
from twinpool.cluster.engine_events import Load
from twinpool.core.messages import FailureKind
from twinpool.model.sequence import Key, Token
from twinpool.protos.convert import failure_kind_to_proto, finish_reason_to_proto, logprobs_to_proto
from twinpool.protos.twinpool.v1 import cluster_pb2
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

MAX_DELTAS = 4096  # of one message: with logprobs about 1 MiB


class Outbox:
    """Collects deltas, failures and the newest view until the stream's writer takes them. Control thread only."""

    def __init__(self) -> None:
        self._pending = pb.StepOutput()  # the newest message
        self._full: deque[pb.StepOutput] = deque()  # those before it
        self._has_news = asyncio.Event()
        self._cache: CacheFeed | None = None  # None: its gateway has not asked
        self.is_replaced = False  # its gateway has called again since: what it says on the old stream is void

    def add_token(self, token: Token) -> None:
        num_deltas = len(self._pending.deltas)
        if num_deltas == MAX_DELTAS or (num_deltas and token.prompt_logprobs):  # a prompt's may be 1 MiB too
            self._full.append(self._pending)
            self._pending = pb.StepOutput()
        self._pending.deltas.append(_delta(token))
        self._has_news.set()

    def add_failure(self, key: Key, kind: FailureKind, reason: str) -> None:
        failure = pb.Failure(
            request_id=key.request_id, epoch=key.epoch, kind=failure_kind_to_proto(kind), reason=reason
        )
        self._pending.failures.append(failure)
        self._has_news.set()

    def set_view(self, view: pb.WorkerView) -> None:
        self._pending.view.CopyFrom(view)
        self._has_news.set()

    def set_links(self, links: cluster_pb2.PairLinks) -> None:
        self._pending.links.CopyFrom(links)
        self._has_news.set()

    @property
    def follows_cache(self) -> bool:
        """Whether its gateway has asked what the prefix cache holds."""
        return self._cache is not None

    def follow_cache(self) -> None:
        """The gateway has asked; `list_cache` must follow."""
        self._cache = self._cache or CacheFeed()

    def list_cache(self, names: list[int]) -> None:
        """All that the prefix cache holds; the list is the outbox's from now on. Nothing happens if nobody asked."""
        if self._cache is not None:
            self._cache.begin(names)
            self._has_news.set()

    def change_cache(self, changes: Mapping[int, bool]) -> None:
        """What entered the prefix cache (True) or left it."""
        if self._cache is not None:
            self._cache.change(changes)
            if self._cache.has_news:
                self._has_news.set()

    async def take(self) -> pb.StepOutput:
        """Wait until there is something to say, and take all of it that one message may hold."""
        await self._has_news.wait()
        if self._full:
            return self._full.popleft()
        taken, self._pending = self._pending, pb.StepOutput()
        if self._cache is not None and self._cache.has_news:
            self._cache.fill(taken.cache)
        if self._cache is None or not self._cache.has_news:
            self._has_news.clear()
        return taken


def view_of(load: Load, version: int) -> pb.WorkerView:
    """An engine's load as it travels."""
    return pb.WorkerView(
        version=version,
        free_blocks=load.free_blocks,
        running=load.running,
        context_tokens=load.context_tokens,
        waiting_prefills=load.waiting_prefills,
        waiting_prefill_tokens=load.waiting_prefill_tokens,
        reservations=load.reservations,
        reserved_blocks=load.reserved_blocks,
        parked_blocks=load.parked_blocks,
        peak_blocks=load.peak_blocks,
        cause=load.cause,
        preempted=load.preempted,
    )


def _delta(token: Token) -> pb.Delta:
    delta = pb.Delta(
        request_id=token.key.request_id,
        epoch=token.key.epoch,
        index=token.index,
        token_ids=(token.token_id,),
        finish_reason=finish_reason_to_proto(token.finish),
    )
    if token.logprobs is not None:
        delta.logprobs.append(logprobs_to_proto(token.logprobs))
    delta.prompt_logprobs.extend(logprobs_to_proto(logprobs) for logprobs in token.prompt_logprobs)
    if token.prefill_s is not None:
        timing = pb.PrefillTiming(queue_s=token.queue_s, prefill_s=token.prefill_s, cached_tokens=token.cached_tokens)
        delta.prefill.CopyFrom(timing)
    if (arrival := token.handoff) is not None:
        handoff = pb.HandoffTiming(
            handoff_s=arrival.handoff_s,
            wire_s=arrival.wire_s,
            exposed_s=arrival.exposed_s,
            kv_bytes=arrival.kv_bytes,
        )
        delta.handoff.CopyFrom(handoff)
    return delta
