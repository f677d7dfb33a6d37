"""Two or more workers' engines and handoff machines in one thread, joined by queues that a seed orders.

The real engine, services, policies, block pools and state machines; only threads, sockets and clocks are missing.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Destination, Load
from twinpool.core.messages import FailureKind, Request, WorkerConfig
from twinpool.decode_worker.service import Sealed
from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer.handoff import Grant, Limits, Message, Next, Started
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.source import SourceHandoff
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.model.modelled_runner import load_modelled
from twinpool.model.sequence import Key, Sequence, Token

WINDOW = 2


@dataclass(eq=False)
class Part:
    """One end of one handoff on one worker."""

    machine: SourceHandoff | TargetHandoff
    peer: "Node"
    block_ids: list[int] = field(default_factory=list)
    request: Request | None = None


class Node:
    """One worker: performs what its machines say, and passes on what its engine reports."""

    def __init__(self, world: "World", config: WorkerConfig) -> None:
        self.world = world
        runner = load_modelled(
            config.model,
            max_model_len=config.max_model_len,
            kv_bytes=config.kv_bytes,
            block_tokens=config.block_tokens,
        )
        self.cache = runner.cache
        self.engine = Engine(config, runner, self, lambda: world.now)
        self.peers: dict[Key, Node] = {}
        self.sources: dict[Key, Part] = {}
        self.targets: dict[Key, Part] = {}
        self.inbox: deque[Callable[[], None]] = deque()  # control messages and link arrivals, in order

    # --- orders ---------------------------------------------------------------------------------------------------

    def prefill(self, request: Request, target: "Node | None") -> None:
        sequence = Sequence(request, "gateway", self.world.now - request.age_s, list(request.token_ids))
        if target is None:
            destination = Destination.LOCAL if request.max_new_tokens > 1 else Destination.NOWHERE
        else:
            destination = Destination.HANDOFF
            self.peers[sequence.key] = target
        self.engine.submit(sequence, destination)

    def reserve(self, request: Request, source: "Node") -> None:
        key = Key(request.request_id, request.epoch)
        self.target(key, source).request = request
        self.tell_target(key, ev.Reserve(len(request.token_ids)))

    # --- engine events --------------------------------------------------------------------------------------------

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None:
        machine = SourceHandoff(key.request_id, key.epoch, num_tokens, self.cache.layout, Limits())
        self.sources[key] = Part(machine, self.peers[key], block_ids)
        self.tell_source(key, ev.Admitted())

    def group_ready(self, key: Key, span: Span) -> None:
        self.tell_source(key, ev.GroupReady(span))

    def computed(self, key: Key, first_token: int, at_s: float) -> None:
        self.tell_source(key, ev.Computed(first_token, at_s))

    def cancel_source(self, key: Key) -> None:
        self.tell_source(key, ev.Cancel("the first token ends the answer"))

    def demote(self, key: Key) -> None:
        self.tell_source(key, ev.Demote("room is needed"))

    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None:
        self.targets[key].block_ids = block_ids
        self.tell_target(key, ev.Bound(skip_blocks))

    def preempted(self, key: Key) -> None:
        self.inbox.append(lambda: self.world.failed(key, FailureKind.PREEMPTED, "preempted"))

    def failed(self, key: Key, reason: str) -> None:
        raise AssertionError(f"{key}: {reason}")

    def stepped(self, tokens: list[Token], load: Load) -> None:
        self.world.take_tokens(tokens)

    def crashed(self, error: Exception) -> None:
        raise error

    # --- machines -------------------------------------------------------------------------------------------------

    def target(self, key: Key, source: "Node") -> Part:
        if key not in self.targets:
            machine = TargetHandoff(key.request_id, key.epoch, self.cache.layout, WINDOW, Limits())
            self.targets[key] = Part(machine, source)
        return self.targets[key]

    def tell_source(self, key: Key, event: ev.SourceEvent) -> None:
        part = self.sources[key]
        assert isinstance(part.machine, SourceHandoff)
        for action in part.machine.advance(event, self.world.now):
            self.perform(key, part, action)

    def tell_target(self, key: Key, event: ev.TargetEvent) -> None:
        part = self.targets[key]
        assert isinstance(part.machine, TargetHandoff)
        for action in part.machine.advance(event, self.world.now):
            self.perform(key, part, action)

    def hear(self, message: Message, sender: "Node") -> None:
        key = Key(message.request_id, message.epoch)
        if isinstance(message, Started):
            self.target(key, sender)
        if key in self.sources and self.sources[key].peer is sender:
            if isinstance(message, Grant):
                self.engine.granted(key)
            self.tell_source(key, message)  # type: ignore[arg-type]
        else:
            self.tell_target(key, message)  # type: ignore[arg-type]

    def perform(self, key: Key, part: Part, action: ev.Action) -> None:
        match action:
            case ev.Send(message):
                part.peer.inbox.append(lambda: part.peer.hear(message, self))
            case ev.Transmit(epoch, group, span):
                self.transmit(key, part, epoch, group, span)
            case ev.Receive():
                pass  # the bytes travel with Next, in order; see transmit
            case ev.BindBlocks():
                assert part.request is not None
                request = part.request
                arrived = self.world.now - request.age_s
                self.engine.want(Sequence(request, "gateway", arrived, list(request.token_ids)))
            case ev.Adopt(seal):
                self.engine.adopt(key, Sealed(seal.first_token, 0.0, 0.0, 0.0, seal.kv_bytes, self.world.now))
            case ev.Release() if part is self.sources.get(key):
                self.engine.release_source(key)
            case ev.Release():
                self.engine.release_target(key)
            case ev.Failed(_, kind, reason):
                self.world.failed(key, kind, reason)
            case _:
                raise AssertionError(f"nothing fails in this world, but: {action}")

    def transmit(self, key: Key, part: Part, epoch: int, group: int, span: Span) -> None:
        seq = self.world.next_seq()
        data = np.empty(span.num_bytes(self.cache.layout), np.uint8)
        ids = np.array(part.block_ids[span.first_block : span.end_block])
        self.cache.gather(span.first_layer, span.end_layer, ids, data)
        target = part.peer

        def arrive() -> None:
            target.hear(Next(key.request_id, epoch, seq, span), self)
            there = target.targets[key]
            if there.block_ids:
                into = np.array(there.block_ids[span.first_block : span.end_block])
                target.cache.scatter(span.first_layer, span.end_layer, into, data)
            target.tell_target(key, ev.GroupReceived(seq, True))
            self.inbox.append(lambda: self.tell_source(key, ev.LinkSent(epoch, group, 0.0, 0.0)))

        target.inbox.append(arrive)


class World:
    """Workers, a seed, and a gateway that dispatches again what was preempted."""

    def __init__(self, configs: list[WorkerConfig], seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.nodes = [Node(self, config) for config in configs]
        self.answers: dict[str, dict[int, int]] = {}
        self.requests: dict[str, Request] = {}
        self.routes: dict[str, tuple[int, int]] = {}
        self.ended: set[str] = set()
        self.num_preempted = 0
        self._seq = 0

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def submit(self, request: Request, prefill: int, decode: int) -> None:
        self.requests[request.request_id] = request
        self.answers.setdefault(request.request_id, {})
        self.routes[request.request_id] = (prefill, decode)
        source, target = self.nodes[prefill], self.nodes[decode]
        if source is target or request.max_new_tokens == 1:
            source.prefill(request, None)
        else:
            target.reserve(request, source)
            source.prefill(request, target)

    def take_tokens(self, tokens: list[Token]) -> None:
        for token in tokens:
            request_id, epoch = token.key
            if epoch != self.requests[request_id].epoch:
                continue
            known = self.answers[request_id].setdefault(token.index, token.token_id)
            assert known == token.token_id, f"{request_id}: two tokens at index {token.index}"
            if token.finish is not None:
                assert request_id not in self.ended
                self.ended.add(request_id)

    def failed(self, key: Key, kind: FailureKind, reason: str) -> None:
        assert kind is FailureKind.PREEMPTED, reason
        self.num_preempted += 1
        request = self.requests[key.request_id]
        answer = self.answers[key.request_id]
        prompt = request.token_ids[: request.num_prompt_tokens]
        tokens = prompt + tuple(answer[index] for index in sorted(answer))
        again = replace(request, epoch=request.epoch + 1, token_ids=tokens, age_s=self.now)
        self.submit(again, *self.routes[key.request_id])

    def run(self, max_turns: int = 30_000) -> None:
        """Let random parts act until every request has ended and nothing moves any more."""
        for _ in range(max_turns):
            self.now += 0.001
            turns: list[Callable[[], object]] = [node.engine.step for node in self.nodes]
            turns += [lambda inbox=node.inbox: inbox.popleft()() for node in self.nodes if node.inbox]
            self.random.choice(turns)()
            if len(self.ended) == len(self.requests) and self.is_quiet():
                return
        waits = [str(node.engine.load()) for node in self.nodes]
        raise AssertionError(f"{len(self.requests) - len(self.ended)} requests never ended: {waits}")

    def is_quiet(self) -> bool:
        """Whether nothing can happen any more; may step engines to find out."""
        if any(node.inbox for node in self.nodes):
            return False
        return not any(node.engine.step() for node in self.nodes) and not any(node.inbox for node in self.nodes)

    def check(self) -> None:
        for node in self.nodes:
            node.engine.pool.check()
