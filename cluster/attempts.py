"""Every attempt of a request that one worker has a part in: what gateways order, handoffs ask and the engine reports.

Passes on between the three; computes nothing, moves no KV, and knows neither gRPC nor how a worker is started.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Destination, Load
from twinpool.cluster.outbox import Outbox
from twinpool.cluster.pair_links import links_to_proto
from twinpool.cluster.worker_view import LoadView
from twinpool.core.messages import FailureKind, Request, WorkerAddress
from twinpool.decode_worker.service import Sealed
from twinpool.kv_transfer.codec import CodecName, quality
from twinpool.kv_transfer.endpoint import TransferEndpoint
from twinpool.kv_transfer.handoff import Seal
from twinpool.kv_transfer.plan import Span
from twinpool.model.block_hash import short_names
from twinpool.model.kv_layout import KVLayout
from twinpool.model.sequence import Key, Sequence, Token
from twinpool.protos.convert import address_from_proto, request_from_proto
from twinpool.protos.twinpool.v1 import cluster_pb2
from twinpool.protos.twinpool.v1 import worker_pb2 as pb


@dataclass(slots=True)
class Attempt:
    """One attempt of a request that this worker has a part in."""

    gateway_id: str
    request: Request
    arrived_s: float  # at its gateway, on this worker's clock
    peer: WorkerAddress | None = None  # the target of a source, the source of a target


class Attempts:
    """Owns the attempts under way and where their gateways listen. Every method runs on the control thread."""

    _engine: Engine
    _endpoint: TransferEndpoint
    _layout: KVLayout

    def __init__(self, clock: Callable[[], float], on_crashed: Callable[[str], None]) -> None:
        """``on_crashed`` is told why this worker's engine can do no more."""
        self._clock = clock
        self._on_crashed = on_crashed
        self._outboxes: dict[str, Outbox] = {}
        self._attempts: dict[Key, Attempt] = {}
        self._sources: dict[str, Key] = {}  # the attempt under which a request's KV is sent from here
        self._load_view = LoadView()
        self._links = cluster_pb2.PairLinks()  # as gateways were told
        self.num_orders = 0  # heard so far

    def join(self, engine: Engine, endpoint: TransferEndpoint, layout: KVLayout) -> None:
        """Name the parts that call back, and so are made after this; before anything else is called."""
        self._engine, self._endpoint, self._layout = engine, endpoint, layout

    def __len__(self) -> int:
        return len(self._attempts)

    # --- orders (worker_service.Orders) ---------------------------------------------------------------------------

    def attached(self, gateway_id: str) -> Outbox:
        """A gateway that calls again has lost its stream, and takes all that it ordered on it for lost."""
        former = self._outboxes.get(gateway_id)
        if former is not None:
            former.is_replaced = True
            self._cancel_all_of(gateway_id, "the gateway has called again")
        self._outboxes[gateway_id] = outbox = Outbox()
        if self._load_view.view.version:
            outbox.set_view(self._load_view.view)
        if self._links.links:
            outbox.set_links(self._links)
        return outbox

    def detached(self, gateway_id: str, outbox: Outbox) -> None:
        """The gateway is gone: nobody wants its requests. A newer stream of the same gateway is left alone."""
        if self._outboxes.get(gateway_id) is not outbox:
            return
        del self._outboxes[gateway_id]
        self._cancel_all_of(gateway_id, "the gateway is gone")
        if outbox.follows_cache and not any(other.follows_cache for other in self._outboxes.values()):
            self._engine.post(self._engine.cache_news.stop)

    def _cancel_all_of(self, gateway_id: str, reason: str) -> None:
        for key in [key for key, attempt in self._attempts.items() if attempt.gateway_id == gateway_id]:
            self._cancel(key, reason)

    def list_cache(self, gateway_id: str) -> None:
        self._outboxes[gateway_id].follow_cache()
        self._engine.post(partial(self._engine.cache_news.list_for, gateway_id))

    def prefill(self, gateway_id: str, order: pb.PrefillOrder) -> None:
        self.num_orders += 1
        request = request_from_proto(order.request)
        target = address_from_proto(order.target) if order.HasField("target") else None
        if order.expects_parked:
            if target is not None and self._retarget(request, target):
                return
            key = self._admit(gateway_id, request, target)
            self._tell_failure(key, FailureKind.PREEMPTED, "the KV that waited for another target is gone")
            self._forget(key)
            return
        if (old := self._sources.get(request.request_id)) is not None:
            self._cancel(old, "a newer attempt replaces it")
        key = self._admit(gateway_id, request, target)
        if target is not None:
            self._sources[request.request_id] = key
            self._endpoint.meet(target)  # it hears from us while the prompt still waits here
            destination = Destination.HANDOFF
        else:
            destination = Destination.LOCAL if request.max_new_tokens > 1 else Destination.NOWHERE
        sequence = self._sequence(self._attempts[key])
        self._engine.post(partial(self._engine.submit, sequence, destination))

    def _retarget(self, request: Request, target: WorkerAddress) -> bool:
        """Send KV that is here already to another target, if this order is about such KV."""
        old = self._sources.get(request.request_id)
        if old is None or self._attempts[old].request.token_ids != request.token_ids:
            return False
        key, attempt = Key(request.request_id, request.epoch), self._attempts[old]
        self._attempts[key] = Attempt(attempt.gateway_id, request, attempt.arrived_s, target)  # news may come at once
        self._sources[request.request_id] = key
        if not self._endpoint.retarget(request.request_id, request.epoch, target):
            del self._attempts[key]
            self._sources[request.request_id] = old
            return False
        del self._attempts[old]
        self._engine.post(partial(self._engine.renew, old, request.epoch))
        return True

    def reserve(self, gateway_id: str, order: pb.ReserveOrder) -> None:
        self.num_orders += 1
        request, source = request_from_proto(order.request), address_from_proto(order.source)
        key = self._admit(gateway_id, request, source)
        self._load_view.expect(key, self._layout.num_blocks(request.peak_tokens))
        num_tokens, allows_loss = len(request.token_ids), not request.lossless_kv
        self._endpoint.reserve(request.request_id, request.epoch, num_tokens, source, allows_loss=allows_loss)

    def cancel(self, gateway_id: str, request_id: str) -> None:
        self.num_orders += 1
        for key, attempt in list(self._attempts.items()):
            if key.request_id == request_id and attempt.gateway_id == gateway_id:
                self._cancel(key, "cancelled by the gateway")

    def _admit(self, gateway_id: str, request: Request, peer: WorkerAddress | None) -> Key:
        key = Key(request.request_id, request.epoch)
        self._attempts[key] = Attempt(gateway_id, request, self._clock() - request.age_s, peer)
        return key

    def _sequence(self, attempt: Attempt) -> Sequence:
        return Sequence(attempt.request, attempt.gateway_id, attempt.arrived_s, list(attempt.request.token_ids))

    def _cancel(self, key: Key, reason: str) -> None:
        self._forget(key)
        self._endpoint.cancel(key.request_id, key.epoch, reason)
        self._engine.post(partial(self._engine.cancel, key))

    def _forget(self, key: Key) -> Attempt | None:
        if self._sources.get(key.request_id) == key:
            del self._sources[key.request_id]
        if self._load_view.forget(key):
            self._show_view()
        return self._attempts.pop(key, None)

    # --- what handoffs ask (endpoint.EngineSide) ------------------------------------------------------------------

    def bind_blocks(self, request_id: str, epoch: int) -> None:
        attempt = self._attempts.get(Key(request_id, epoch))
        if attempt is not None:
            self._load_view.asked(Key(request_id, epoch))
            sequence = self._sequence(attempt)
            self._engine.post(partial(self._engine.want, sequence))

    def granted(self, request_id: str, epoch: int) -> None:
        self._engine.post(partial(self._engine.granted, Key(request_id, epoch)))

    def adopt(self, request_id: str, epoch: int, seal: Seal, codec: CodecName) -> None:
        sealed = Sealed(
            first_token=seal.first_token,
            since_computed_s=seal.since_computed_s,
            wire_s=seal.wire_s,
            exposed_s=seal.exposed_s,
            kv_bytes=seal.kv_bytes,
            heard_s=self._clock(),
            quality=quality(codec),
        )
        self._engine.post(partial(self._engine.adopt, Key(request_id, epoch), sealed))

    def release_source(self, request_id: str, epoch: int) -> None:
        key = Key(request_id, epoch)
        self._forget(key)
        self._engine.post(partial(self._engine.release_source, key))

    def release_target(self, request_id: str, epoch: int) -> None:
        key = Key(request_id, epoch)
        self._forget(key)
        self._engine.post(partial(self._engine.release_target, key))

    def parked(self, request_id: str, epoch: int, reason: str) -> None:
        key = Key(request_id, epoch)
        self._engine.post(partial(self._engine.ungranted, key))
        self._tell_failure(key, FailureKind.TRANSFER_FAILED, reason)

    def failed(self, request_id: str, epoch: int, kind: FailureKind, reason: str) -> None:
        self._tell_failure(Key(request_id, epoch), kind, reason)

    def _tell_failure(self, key: Key, kind: FailureKind, reason: str) -> None:
        attempt = self._attempts.get(key)
        outbox = self._outboxes.get(attempt.gateway_id) if attempt is not None else None
        if outbox is not None:
            outbox.add_failure(key, kind, reason)

    # --- what the engine reports (bridge.Reports, hopped over) ----------------------------------------------------

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None:
        attempt = self._attempts.get(key)
        if attempt is None or attempt.peer is None:  # cancelled meanwhile
            self._engine.post(partial(self._engine.release_source, key))
            return
        allows_loss = not attempt.request.lossless_kv
        self._endpoint.begin_source(
            key.request_id, key.epoch, num_tokens, block_ids, attempt.peer, allows_loss=allows_loss
        )

    def group_ready(self, key: Key, span: Span) -> None:
        self._endpoint.group_ready(key.request_id, key.epoch, span)

    def computed(self, key: Key, first_token: int, at_s: float) -> None:
        self._endpoint.computed(key.request_id, key.epoch, first_token, at_s)

    def cancel_source(self, key: Key) -> None:
        self._endpoint.cancel(key.request_id, key.epoch, "the first token ends the answer")

    def demote(self, key: Key) -> None:
        self._endpoint.demote(key.request_id, key.epoch, "room is needed for running sequences")

    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None:
        if not self._endpoint.bound(key.request_id, key.epoch, block_ids, skip_blocks):
            self._engine.post(partial(self._engine.release_target, key))

    def preempted(self, key: Key) -> None:
        self._tell_failure(key, FailureKind.PREEMPTED, "its blocks were needed for older sequences")
        self._forget(key)

    def engine_failed(self, key: Key, reason: str) -> None:
        self._tell_failure(key, FailureKind.UNANSWERABLE, reason)
        if self._sources.get(key.request_id) != key:
            self._forget(key)

    def stepped(self, tokens: list[Token], load: Load) -> None:
        self._load_view.update(load)
        self._show_view()
        for token in tokens:
            self._note_production(token)
            outbox = self._outboxes.get(token.gateway_id)
            if outbox is not None:
                outbox.add_token(token)
            if token.finish is not None and self._sources.get(token.key.request_id) != token.key:
                self._forget(token.key)

    def _note_production(self, token: Token) -> None:
        attempt = self._attempts.get(token.key)
        if token.prefill_s is not None and attempt is not None:
            self._endpoint.produced(len(attempt.request.token_ids) - token.cached_tokens, token.prefill_s)
            self._engine.post(partial(self._engine.spans.stream_at, self._endpoint.stream_rates))

    def cache_listed(self, gateway_id: str, hashes: list[bytes]) -> None:
        if gateway_id in self._outboxes:
            self._outboxes[gateway_id].list_cache(short_names(hashes))

    def cache_changed(self, changes: dict[bytes, bool]) -> None:
        named = dict(zip(short_names(list(changes)), changes.values(), strict=True))
        for outbox in self._outboxes.values():
            outbox.change_cache(named)

    def note_transfer(self) -> None:
        """Tell gateways what handoffs wait for and go over, if that has changed. To be called now and then."""
        if self._load_view.note_transfer(self._endpoint.metrics()):
            self._show_view()
        links = links_to_proto(self._endpoint.stats().links)
        if links != self._links:
            self._links = links
            for outbox in self._outboxes.values():
                outbox.set_links(links)

    def _show_view(self) -> None:
        for outbox in self._outboxes.values():
            outbox.set_view(self._load_view.view)

    def crashed(self, error: Exception) -> None:
        """The engine is gone: tell everybody, and let the process be replaced."""
        for key in list(self._attempts):
            self._tell_failure(key, FailureKind.INTERNAL, f"{type(error).__name__}: {error}")
        self._attempts.clear()
        self._on_crashed(f"the engine stopped: {type(error).__name__}: {error}")
