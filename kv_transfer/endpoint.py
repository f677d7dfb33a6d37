"""A worker's part in all handoffs, as its control thread sees it: what comes from outside goes in, in turns.

Puts pairs, links and state machines together and takes them apart. Decides nothing and touches no block itself.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.channel import PeerChannel
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_policy import CodecPolicy, usable_link
from twinpool.kv_transfer.engine_side import EngineSide
from twinpool.kv_transfer.events import Admitted, Cancel, Computed, Demote, EngineEvent, GroupReady
from twinpool.kv_transfer.handoff import Limits
from twinpool.kv_transfer.link import Links
from twinpool.kv_transfer.links import LinkKinds, usable_links
from twinpool.kv_transfer.metrics import TransferMetrics
from twinpool.kv_transfer.pair import Introduction, Pair, PairOwner, Pulse
from twinpool.kv_transfer.pair_link import MAX_OPEN_LINKS, LinkEnds, PairLink
from twinpool.kv_transfer.pairing import Dial, ServedChannel, grpc_dial
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.source_codecs import SourceCodecs
from twinpool.kv_transfer.sources import Sources
from twinpool.kv_transfer.targets import Targets
from twinpool.kv_transfer.turns import Turns
from twinpool.model.kv_layout import KVCache
from twinpool.model.layer_groups import StreamRates
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkStats:
    """One pair's link; ``link_epoch`` counts how often it was opened."""

    peer: str
    is_outgoing: bool
    is_open: bool
    kind: str  # empty: none was opened yet
    why: str  # it is of this kind, for people
    link_epoch: int
    num_bytes: int
    num_messages: int  # heard from the peer, heartbeats not counted


@dataclass(frozen=True, slots=True)
class TransferStats:
    """What a worker's handoffs are up to."""

    description: str  # of the kinds of link it uses
    links: tuple[LinkStats, ...]
    num_outgoing: int  # handoffs that are not over
    num_incoming: int


class TransferEndpoint:
    """Made, used and closed on the control thread, with its event loop running; calls the engine back on it.

    Args:
        link, codec, digest, interface: as in the cluster's YAML under ``transfer``.
        clock: of all deadlines; must be ``time.monotonic``, or tick with it, since links report times of that.
        window: groups of one handoff outstanding at most.
        max_open_links: over it, the links that were unused for longest are closed.
        links, dial: other ways to move bytes and to reach peers, for workers inside one process.
            Likewise a CodecPolicy with rates of its own.

    Raises:
        ValueError: the link or the codec cannot be used here (see usable_links, codec_policy.py).
    """

    def __init__(
        self,
        address: WorkerAddress,
        cache: KVCache,
        engine: EngineSide,
        *,
        link: str = "auto",
        codec: str | CodecPolicy = "raw",
        digest: bool = True,
        interface: str = "127.0.0.1",
        cluster_secret: str = "",
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
        window: int = 4,
        heartbeat_s: float = 1.0,
        max_open_links: int = MAX_OPEN_LINKS,
        links: Links | LinkKinds | None = None,
        dial: Dial | None = None,
    ) -> None:
        limits = limits or Limits()
        policy = codec if isinstance(codec, CodecPolicy) else CodecPolicy(codec, cache.layout)
        self._codec = policy.setting
        self._codecs = SourceCodecs(policy)
        if links is None:
            links = usable_links(usable_link(policy.setting, link), cache, interface, digest=digest)
        self._kinds = links if isinstance(links, LinkKinds) else LinkKinds.only(links)
        self._dial = dial or grpc_dial(cluster_secret)
        self._turns = Turns(clock)
        self._pulse = Pulse(heartbeat_s, limits.lease_s)
        self._introduction = Introduction(address, cache.layout, self._kinds.offer)
        self._ends = LinkEnds(self._kinds, cache.layout, self._turns, max_open_links)
        self._sources = Sources(engine, self._ends, limits, self._call, self._codecs)
        self._targets = Targets(engine, self._ends, limits, window, policy.codecs)
        self._is_closed = False

    # --- As a source ------------------------------------------------------------------------------------------------

    def meet(self, target: WorkerAddress) -> None:
        """Call a target early, so that it hears of this worker while the request still waits for its prefill."""
        self._turns.post(partial(self._sources.meet, target))

    def begin_source(
        self,
        request_id: str,
        epoch: int,
        num_tokens: int,
        block_ids: Sequence[int],
        target: WorkerAddress,
        *,
        allows_loss: bool = True,
    ) -> None:
        """The prefill begins, in these blocks, which stay as they are until ``EngineSide.release_source``.

        ``allows_loss`` is the request's word, under every epoch.
        """

        def begin() -> None:
            self._sources.begin(request_id, epoch, num_tokens, block_ids, target, allows_loss=allows_loss)
            self._sources.tell(request_id, epoch, Admitted())

        self._turns.post(begin)

    def group_ready(self, request_id: str, epoch: int, span: Span) -> None:
        """The KV of this span is written. ``epoch`` is any that the handoff has had."""
        self._tell_source(request_id, epoch, GroupReady(span))

    def computed(self, request_id: str, epoch: int, first_token: int, at_s: float) -> None:
        """Every span was reported, and the first token is known since ``at_s`` on ``clock``."""
        self._tell_source(request_id, epoch, Computed(first_token, at_s))

    def demote(self, request_id: str, epoch: int, reason: str) -> None:
        """The engine wants the room of KV that nobody has granted room for; ignored while it moves."""
        self._tell_source(request_id, epoch, Demote(reason))

    def retarget(self, request_id: str, epoch: int, target: WorkerAddress) -> bool:
        """Send KV that is here to another target under a higher epoch; False if there is none, and nothing is done."""
        if not self._sources.can_retarget(request_id, epoch):
            return False
        self._turns.post(partial(self._sources.retarget, request_id, epoch, target))
        return True

    def produced(self, num_tokens: int, duration_s: float) -> None:
        """A prefill that has just ended computed the KV of this many tokens; several may share the time."""
        now = self._turns.clock()
        self._codecs.produced(num_tokens * self._ends.layout.token_bytes, now - duration_s, now)

    @property
    def stream_rates(self) -> StreamRates:
        """What was measured lately of links and prefills, for the choice of layer groups."""
        return self._codecs.stream_rates(self._turns.clock())

    def _tell_source(self, request_id: str, epoch: int, event: EngineEvent) -> None:
        self._turns.post(partial(self._sources.tell, request_id, epoch, event))

    # --- As a target ------------------------------------------------------------------------------------------------

    def reserve(
        self, request_id: str, epoch: int, num_tokens: int, source: WorkerAddress, *, allows_loss: bool = True
    ) -> None:
        """Expect the KV of this many tokens from ``source``; ``EngineSide.bind_blocks`` follows when it has started."""
        reserve = partial(self._targets.reserve, request_id, epoch, num_tokens, source, allows_loss=allows_loss)
        self._turns.post(reserve)

    def bound(self, request_id: str, epoch: int, block_ids: Sequence[int], skip_blocks: int) -> bool:
        """These blocks are the request's, and the leading ``skip_blocks`` hold its KV already.

        False if nobody waits for them any more; then they are the caller's again. Otherwise they must be kept until
        ``EngineSide.adopt`` or ``release_target``.
        """
        if not self._targets.is_wanted(request_id, epoch):
            return False
        self._turns.post(partial(self._targets.bound, request_id, epoch, block_ids, skip_blocks))
        return True

    async def serve(self, channel: PeerChannel) -> None:
        """Be the target of whoever called; returns when the conversation is over."""
        if self._is_closed:
            await channel.close()
            return
        pair = Pair(self._introduction, self._targets, self._turns, self._pulse)
        self._targets.welcome(pair)
        task = pair.answer(channel)
        try:
            await asyncio.wait((task,))
        finally:
            pair.end("the source hung up")
            await pair.join()
            await channel.close()

    async def serve_pair(self, requests: AsyncIterator[pb.PeerMessage], _context: Any) -> AsyncIterator[pb.PeerMessage]:
        """The handler of WorkerService.Pair; the caller has checked that the peer belongs to the cluster."""
        channel = ServedChannel(requests)
        serving = asyncio.create_task(self.serve(channel))
        try:
            async for message in channel.outgoing():
                yield message
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    # --- As either --------------------------------------------------------------------------------------------------

    def cancel(self, request_id: str, epoch: int, reason: str) -> None:
        """Nobody wants this epoch any more. Blocks stay referenced until the release that follows."""

        def cancel() -> None:
            self._sources.tell(request_id, epoch, Cancel(reason))
            self._targets.cancel(request_id, epoch, reason)

        self._turns.post(cancel)

    @property
    def link_description(self) -> str:
        """The kinds of link, and how KV is coded if it is, for people."""
        if self._codec == CodecName.RAW:
            return self._kinds.description
        return f"{self._kinds.description}, codec {self._codec}"

    def stats(self) -> TransferStats:
        """A snapshot for people."""
        links = [_link_stats(pair, link, is_outgoing=True) for pair, link in self._sources.links.items()]
        links += [_link_stats(pair, link, is_outgoing=False) for pair, link in self._targets.links.items()]
        counts = (self._sources.num_handoffs, self._targets.num_handoffs)
        return TransferStats(self._kinds.description, tuple(links), *counts)

    def metrics(self) -> TransferMetrics:
        """What handoffs wait for now, and what they have come to since the start, in numbers."""
        now = self._turns.clock()
        return self._targets.meter.add_to(self._sources.metrics(now), now)

    async def close(self) -> None:
        """End every conversation and link; nothing is left afterwards. The engine hears nothing more. Idempotent."""
        self._is_closed = True
        pairs = [*self._sources.close("the worker is closing"), *self._targets.close("the worker is closing")]
        for pair in pairs:
            await pair.join()
        timeout_s = self._kinds.close_timeout_s
        if not await self._ends.wait_gone(timeout_s):
            log.error("links are still open %g s after they were closed", timeout_s)

    def _call(self, owner: PairOwner, target: WorkerAddress) -> Pair:
        pair = Pair(self._introduction, owner, self._turns, self._pulse)
        pair.call(target, self._dial)
        return pair


def _link_stats(pair: Pair, link: PairLink, *, is_outgoing: bool) -> LinkStats:
    return LinkStats(
        pair.name,
        is_outgoing,
        link.is_open,
        link.kind,
        link.why,
        link.link_epoch,
        link.num_bytes,
        pair.num_heard,
    )
