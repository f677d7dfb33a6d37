"""One source worker, some target workers and a gateway, with the real handoffs between them, in a seeded world.

Models what an endpoint, a link and an engine's block pool do, and checks that no block is read or written after it was
freed. A worker may die and be started again, as another incarnation to which nothing of the former one belongs; no two
agree on the time. Knows nothing of models and tokens; blocks are sets of (layer, block) pairs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer import handoff as msg
from twinpool.kv_transfer.plan import layer_groups, max_skip_blocks, spans_of_chunk
from twinpool.kv_transfer.source import SourceHandoff
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.model.kv_layout import KVLayout
from twinpool.simulator.handoff_ends import Call, End, Target
from twinpool.simulator.handoff_link import ModelLink
from twinpool.simulator.world import Faults, Network, World

LAYOUT = KVLayout(num_layers=3, num_kv_heads=1, block_tokens=4, head_dim=1, dtype="float32", model="modelled")
GROUPS = layer_groups(LAYOUT.num_layers, 2)
CHUNK_TOKENS = 8
NOTICED_S = 0.3  # after which the gateway knows that a worker died
MAX_CLOCK_S = 3600.0  # by which workers' clocks are off


class Cluster:
    """The workers and the gateway. Orders and reports travel safely; what workers tell each other does not."""

    def __init__(self, world: World, limits: msg.Limits, target_blocks: dict[str, int]) -> None:
        self.world = world
        self.limits = limits
        self.network = Network(world, Faults())  # between workers
        self.orders = Network(world, Faults())  # to and from the gateway
        self._pool_blocks = target_blocks
        self.targets: dict[str, Target] = {}
        self.links: dict[str, ModelLink] = {}  # to the targets that live, by their names
        self._all_links: list[ModelLink] = []
        for name in target_blocks:
            self.start_target(name)
        self.sources: dict[str, list[End]] = {}
        self.source_life = 0
        self.is_source_alive = True
        self.source_clock_s = self.draw_clock()
        self.calls: dict[str, Call] = {}
        self.corrupt = 0.0
        self._beat()

    def draw_clock(self) -> float:
        """How far a worker's clock is off."""
        return self.world.random.uniform(-MAX_CLOCK_S, MAX_CLOCK_S)

    def _beat(self) -> None:
        for target in self.targets.values():
            if target.is_alive and self.is_source_alive:
                mine = partial(self._ends_of_life, target, self.source_life)
                self.network.send("p", target.name, partial(self._hear, mine))
                theirs = partial(self.sources_on, self.links[target.name])
                self.network.send(target.name, "p", partial(self._hear, theirs))
        self.world.after(1.0, self._beat)

    def _ends_of_life(self, target: Target, life: int) -> list[End]:
        return [end for end in target.live_ends() if end.life == life == self.source_life]

    def _hear(self, ends: Callable[[], list[End]]) -> None:
        for end in ends():
            end.tell(ev.Heard())

    # --- The gateway --------------------------------------------------------------------------------------------------

    def submit(self, request_id: str, num_tokens: int) -> None:
        """A client calls."""
        self.calls[request_id] = Call(request_id, num_tokens)
        self._dispatch(self.calls[request_id])

    def _dispatch(self, call: Call) -> None:
        call.epoch += 1
        alive = [name for name, target in self.targets.items() if target.is_alive and name != call.target]
        call.target = self.world.random.choice(alive or list(self.targets))
        epoch, target = call.epoch, self.targets[call.target]
        self.orders.send("gateway", "p", partial(self._prefill, call, epoch, target))
        self.orders.send("gateway", target.name, partial(self._reserve, target, call, epoch, self.source_life))
        if not target.is_alive:
            self.notice_loss(call, epoch)

    def notice_loss(self, call: Call, epoch: int) -> None:
        """Somebody whom this epoch of the call needs is dead; the gateway hears of it in a while."""
        self.world.after(NOTICED_S, partial(self._report, call.request_id, epoch, False))

    def cancel(self, request_id: str) -> None:
        """The client leaves."""
        call = self.calls[request_id]
        if not call.outcome:
            call.outcome = "cancelled"
            for end in self.sources.get(request_id, []):
                end.tell(ev.Cancel("cancelled"))
            self._forget(call)

    def _forget(self, call: Call) -> None:
        target, key = self.targets[call.target], (call.request_id, call.epoch)
        self.orders.send("gateway", target.name, lambda: self._drop(target, key))

    def _drop(self, target: Target, key: tuple[str, int]) -> None:
        if key in target.ends:
            target.ends[key].tell(ev.Cancel("no longer wanted"))

    def _report(self, request_id: str, epoch: int, is_adopted: bool) -> None:
        call = self.calls[request_id]
        if call.outcome or epoch != call.epoch:
            return
        if is_adopted:
            call.outcome = "done"
        else:
            self._forget(call)
            self._dispatch(call)

    def _tell_gateway(self, end: End, epoch: int, is_adopted: bool) -> None:
        request_id = end.machine.request_id
        self.orders.send("worker", "gateway", lambda: self._report(request_id, epoch, is_adopted))

    # --- The source worker --------------------------------------------------------------------------------------------

    def sources_on(self, link: ModelLink) -> list[End]:
        """The source's ends whose current epoch goes this way."""
        ends = [end for ends in self.sources.values() for end in ends if not end.machine.is_over]
        return [end for end in ends if link.carries(end)]

    def _prefill(self, call: Call, epoch: int, target: Target) -> None:
        if not self.is_source_alive:
            self.notice_loss(call, epoch)
            return
        next(link for link in self._all_links if link.target is target).epochs.add((call.request_id, epoch))
        ends = self.sources.setdefault(call.request_id, [])
        for end in ends:
            if end.machine.can_retarget:
                end.tell(ev.Retarget(epoch))
                return
        if call.outcome:
            return
        machine = SourceHandoff(call.request_id, epoch, call.num_tokens, LAYOUT, self.limits)
        end = End(self.world, machine, self._perform_source, call.num_tokens, holds_blocks=True)
        end.life, end.clock_s = self.source_life, self.source_clock_s
        ends.append(end)
        end.tell(ev.Admitted())
        self._compute(end, 0)

    def _compute(self, end: End, before: int) -> None:
        if end.machine.is_over or end.is_dead:
            return
        after = min(before + CHUNK_TOKENS, end.num_tokens)
        for span in spans_of_chunk(before, after, after == end.num_tokens, LAYOUT.block_tokens, GROUPS):
            end.tell(ev.GroupReady(span))
        if after == end.num_tokens:
            end.tell(ev.Computed(7, self.world.now + end.clock_s))
        else:
            self.world.after(self.world.random.uniform(0, 0.05), lambda: self._compute(end, after))

    def _link_of(self, end: End, epoch: int) -> ModelLink:
        return next(link for link in self._all_links if (end.machine.request_id, epoch) in link.epochs)

    def _perform_source(self, end: End, action: ev.Action) -> None:
        match action:
            case ev.Send(message):
                link = self._link_of(end, message.epoch)
                if link.target.is_alive:
                    self.deliver(link, message)
                else:
                    end.soon(ev.PeerLost(message.epoch, "gone"))
            case ev.Transmit(epoch):
                assert end.holds_blocks, "sent after release"
                self._link_of(end, epoch).transmit(end, action)
            case ev.CloseLink(epoch):
                self._link_of(end, epoch).close()
                end.soon(ev.LinkClosed(epoch, "closed"))
            case ev.Release():
                end.num_releases += 1
                end.holds_blocks = False
            case ev.Parked(epoch) | ev.Failed(epoch):
                self._tell_gateway(end, epoch, False)
            case _:
                raise AssertionError(action)

    def _at_source(self, link: ModelLink, message: Any) -> None:
        for end in self.sources.get(message.request_id, []):
            if end.machine.epoch == message.epoch:
                end.tell(message)
                return
        for answer in msg.answer_unknown(message):
            self.deliver(link, answer)

    def deliver(self, link: ModelLink, message: msg.Message) -> None:
        """Send a message to the link's target worker."""
        life = self.source_life
        hear = partial(self._at_target, link, message, life)
        self.network.send("p", link.target.name, lambda: None if life != self.source_life else hear())

    def _answer(self, link: ModelLink, message: msg.Message, life: int) -> None:
        """Send a message to the source, if it is the one that is meant when it arrives."""
        hear = partial(self._at_source, link, message)
        self.network.send(link.target.name, "p", lambda: None if life != self.source_life else hear())

    # --- Target workers -----------------------------------------------------------------------------------------------

    def start_target(self, name: str) -> None:
        """A target under this name, with an empty pool; what was meant for a former one never reaches it."""
        target = self.targets[name] = Target(name, self._pool_blocks[name], self.draw_clock())
        link = self.links[name] = ModelLink(self, target)
        self._all_links.append(link)

    def _end_at(self, target: Target, key: tuple[str, int], num_tokens: int, life: int) -> End:
        if key not in target.ends:
            machine = TargetHandoff(*key, LAYOUT, self.world.random.randint(1, 3), self.limits)
            target.ends[key] = End(self.world, machine, partial(self._perform_target, target), num_tokens)
            target.ends[key].life, target.ends[key].clock_s = life, target.clock_s
        return target.ends[key]

    def _reserve(self, target: Target, call: Call, epoch: int, life: int) -> None:
        if target.is_alive:
            self._end_at(target, (call.request_id, epoch), call.num_tokens, life).tell(ev.Reserve(call.num_tokens))

    def _at_target(self, link: ModelLink, message: Any, life: int) -> None:
        target, key = link.target, (message.request_id, message.epoch)
        if not target.is_alive or (isinstance(message, msg.Next) and not link.expect(message)):
            return
        if isinstance(message, msg.Started):
            self._end_at(target, key, message.num_tokens, life)
        if key in target.ends:
            target.ends[key].tell(message)
        elif isinstance(message, msg.Next):
            link.post(None, ev.Receive(message.seq, message.span, discard=True))
        for answer in () if key in target.ends else msg.answer_unknown(message):
            self._answer(link, answer, life)

    def _bind(self, target: Target) -> None:
        while target.waiting and LAYOUT.num_blocks(target.waiting[0].num_tokens) <= target.free_blocks:
            end = target.waiting.pop(0)
            target.free_blocks -= LAYOUT.num_blocks(end.num_tokens)
            end.holds_blocks = True
            end.skip_blocks = self.world.random.randint(0, max_skip_blocks(end.num_tokens, LAYOUT.block_tokens))
            end.soon(ev.Bound(end.skip_blocks))

    def _give_back(self, target: Target, end: End) -> None:
        end.holds_blocks = False
        target.free_blocks += LAYOUT.num_blocks(end.num_tokens)
        self._bind(target)

    def _perform_target(self, target: Target, end: End, action: ev.Action) -> None:
        link = self.links[target.name]
        match action:
            case ev.Send(message):
                self._answer(link, message, end.life)
            case ev.BindBlocks():
                target.waiting.append(end)
                self._bind(target)
            case ev.Receive():
                link.post(end, action)
            case ev.CloseLink():
                link.close()
            case ev.Adopt():
                end.num_releases += 1
                blocks = range(end.skip_blocks, LAYOUT.num_blocks(end.num_tokens))
                assert end.written == {(layer, block) for layer in range(LAYOUT.num_layers) for block in blocks}
                self._tell_gateway(end, end.machine.epoch, True)
                self.world.after(self.world.random.uniform(0, 1), lambda: self._give_back(target, end))
            case ev.Release():
                end.num_releases += 1
                if end in target.waiting:
                    target.waiting.remove(end)
                if end.holds_blocks:
                    self._give_back(target, end)
            case ev.Failed(epoch):
                self._tell_gateway(end, epoch, False)
            case _:
                raise AssertionError(action)
