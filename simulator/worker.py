"""A simulated worker: what gateways order, handoffs ask and its engine reports, as cluster/attempts.py in a live one.

Every message between processes takes the scenario's time. Decides nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from twinpool.core.messages import FailureKind
from twinpool.router.views import WorkerLoad
from twinpool.simulator.attempt import Attempt, Destination
from twinpool.simulator.decode_rows import Row
from twinpool.simulator.engine import Counts, SimulatedEngine
from twinpool.simulator.flows import Card
from twinpool.simulator.news import Arrival, FirstToken, News
from twinpool.simulator.observer import Observer, Steps
from twinpool.simulator.prefixes import CacheTeller
from twinpool.simulator.prompt_queue import Prompt
from twinpool.simulator.scenario import Scenario, SimulatedWorker
from twinpool.simulator.sending import Sending
from twinpool.simulator.world import World


class Neighbours(Protocol):
    """The cluster around a worker."""

    def tell(self, place: int, news: News) -> None:
        """Let the gateways know; takes a message's time."""
        ...

    def peer(self, place: int) -> "WorkerProcess":
        """The process that stands at this place now."""
        ...


class WorkerProcess:
    """One incarnation of a worker; a dead one hears and says nothing."""

    def __init__(
        self,
        world: World,
        place: int,
        worker: SimulatedWorker,
        scenario: Scenario,
        neighbours: Neighbours,
        card: Card,
        observer: Observer,
        start: int = 0,
    ) -> None:
        self.place = place
        self.card = card
        self.is_dead = False
        self._world = world
        self._kind = worker.kind
        self._message_s = scenario.message_s
        self._may_lose_workers = bool(scenario.faults)
        self._neighbours = neighbours
        self._observer = observer
        self.engine = SimulatedEngine(world, place, worker, scenario, self, start)
        self._sendings: dict[Attempt, Sending] = {}
        self._targets: dict[Attempt, int] = {}  # of prompts whose KV goes to another worker
        self._computed_s: dict[Attempt, float] = {}  # of these, once they have their first token
        self._expected: dict[Attempt, int] = {}  # blocks of reservations of which the engine has not heard
        self._sources: dict[Attempt, int] = {}  # of reservations, until their KV is here
        self._by_request: dict[tuple[int, str], list[Attempt]] = {}  # (gateway, request id)
        self._landed: dict[Attempt, Sending] = {}  # arrived, and not yet in a step
        self._news = News([], [], [], [])
        self._cache = CacheTeller(self.engine.pool) if scenario.tells_caches else None
        self._told: Counts | None = None
        self._version = 0

    @property
    def num_attempts(self) -> int:
        """Attempts that this worker has a part in."""
        known = (attempt for attempts in self._by_request.values() for attempt in attempts)
        held = (self._sendings, self._targets, self._expected, self._sources, self._landed)
        return len(set(known).union(*held))

    # --- orders of gateways ---------------------------------------------------------------------------------------

    def prefill(self, attempt: Attempt, target: int | None, parked: Attempt | None) -> None:
        """Prefill a prompt, or send its parked KV to another target."""
        if self.is_dead:
            return
        self._know(attempt)
        self.engine.ordered()
        if parked is not None:
            assert target is not None
            self.engine.post(partial(self._retarget, parked, attempt, target))
            return
        if target is not None:
            self._targets[attempt] = target
            destination = Destination.HANDOFF
        else:
            last = attempt.request.max_new_tokens <= 1
            destination = Destination.NOWHERE if last else Destination.LOCAL
        self.engine.post(partial(self.engine.submit, attempt, destination, self._world.now))

    def reserve(self, attempt: Attempt, source: int) -> None:
        """Keep room in mind for a handoff."""
        if self.is_dead:
            return
        self._know(attempt)
        self._expected[attempt] = -(-attempt.request.peak_tokens // self._kind.block_tokens)
        self._sources[attempt] = source
        self.engine.ordered()

    def cancel(self, gateway: int, request_id: str) -> None:
        """Stop all attempts of a request."""
        if not self.is_dead:
            for attempt in list(self._by_request.get((gateway, request_id), ())):
                self._drop(attempt)

    def _know(self, attempt: Attempt) -> None:
        self._by_request.setdefault((attempt.gateway, attempt.request.request_id), []).append(attempt)

    def _drop(self, attempt: Attempt) -> None:
        self._stop_sending(attempt)
        self._forget(attempt)
        self.engine.post(partial(self.engine.cancel, attempt))

    def _forget(self, attempt: Attempt) -> None:
        self._expected.pop(attempt, None)
        self._targets.pop(attempt, None)
        self._computed_s.pop(attempt, None)
        self._sources.pop(attempt, None)
        self._landed.pop(attempt, None)
        key = (attempt.gateway, attempt.request.request_id)
        attempts = self._by_request.get(key, [])
        if attempt in attempts:
            attempts.remove(attempt)
        if not attempts:
            self._by_request.pop(key, None)

    def _stop_sending(self, attempt: Attempt) -> None:
        sending = self._sendings.pop(attempt, None)
        if sending is not None:
            sending.stop()

    # --- handoffs: the source -------------------------------------------------------------------------------------

    def began(self, prompt: Prompt) -> None:
        """Tell the target, and keep what is computed from now on."""
        self._open(prompt.attempt)
        self._sendings[prompt.attempt].cached(prompt.cached_tokens)

    def _open(self, attempt: Attempt) -> None:
        target = self._neighbours.peer(self._targets[attempt])
        source_end, target_end = (self.place, self.card), (target.place, target.card)
        self._sendings[attempt] = Sending(self._world, attempt, self._kind, source_end, target_end, self._arrived)
        self._send(lambda: target.started(attempt))

    def computing(self, prompt: Prompt, started_s: float, ends_s: float) -> None:
        sending = self._sendings.get(prompt.attempt)
        if sending is not None:
            end = prompt.num_computed + prompt.chunk_tokens
            sending.computing(prompt.num_computed, end, started_s, ends_s)

    def grant(self, attempt: Attempt, skip_tokens: int) -> None:
        """The target has room."""
        sending = self._sendings.get(attempt)
        if self.is_dead or sending is None:
            return
        sending.granted(skip_tokens)
        self.engine.post(partial(self.engine.granted, attempt))

    def _arrived(self, sending: Sending) -> None:
        target = self._neighbours.peer(sending.target)
        assert sending.transfer is not None
        self._observer.transferred(sending.transfer)
        target.arrived(sending)

    def acknowledged(self, attempt: Attempt) -> None:
        """The target has all KV: it is needed here no more."""
        if not self.is_dead:
            self._stop_sending(attempt)
            self._forget(attempt)
            self.engine.post(partial(self.engine.release_source, attempt))

    def peer_lost(self, place: int) -> None:
        """A worker died: what was being sent there is parked, what was expected from there will not come."""
        if self.is_dead:
            return
        for attempt, target in list(self._targets.items()):
            if target == place and attempt in self._sendings:
                self._stop_sending(attempt)
                self._fail(attempt, FailureKind.TRANSFER_FAILED)  # told when the engine next turns
                self.engine.post(partial(self.engine.prompts.ungranted, attempt))
        for attempt, source in list(self._sources.items()):
            if source == place:
                self._drop(attempt)

    def _retarget(self, parked: Attempt, attempt: Attempt, target: int) -> None:
        is_here = self.engine.prompts.outgoing_blocks(parked) > 0 and self.engine.prompts.find(parked) is None
        if not is_here or not self.engine.prompts.renew(parked, attempt):
            self._forget(attempt)
            self._fail(attempt, FailureKind.PREEMPTED)
            return
        computed_s = self._computed_s.get(parked, self._world.now)  # none of one that was just cancelled
        self._stop_sending(parked)
        self._forget(parked)
        self._targets[attempt], self._computed_s[attempt] = target, computed_s
        self._open(attempt)
        sending = self._sendings[attempt]
        sending.cached(attempt.num_tokens)
        sending.computed(computed_s)

    # --- handoffs: the target -------------------------------------------------------------------------------------

    def started(self, attempt: Attempt) -> None:
        """The source computes: blocks are wanted."""
        if not self.is_dead and attempt in self._sources:
            self.engine.post(partial(self._want, attempt))

    def _want(self, attempt: Attempt) -> None:
        if self._expected.pop(attempt, None) is not None:
            self.engine.rows.want(attempt, self._world.now, is_local=False)

    def bound(self, row: Row) -> None:
        source = self._neighbours.peer(self._sources[row.attempt])
        self._send(lambda: source.grant(row.attempt, row.cached_tokens))

    def arrived(self, sending: Sending) -> None:
        """All KV of a handoff is here."""
        attempt = sending.attempt
        if self.is_dead or attempt not in self._sources:
            return
        source = self._neighbours.peer(self._sources.pop(attempt))
        self._landed[attempt] = sending
        self.engine.post(partial(self.engine.adopt, attempt))
        self._send(lambda: source.acknowledged(attempt))

    # --- what the engine reports ----------------------------------------------------------------------------------

    def computed(self, prompt: Prompt) -> None:
        attempt, now = prompt.attempt, self._world.now
        assert prompt.started_s is not None
        came_s = max(prompt.came_s, attempt.arrival_s)
        first = FirstToken(attempt, prompt.started_s - came_s, now - prompt.started_s, prompt.cached_tokens)
        self._news.firsts.append(first)
        is_over = attempt.first_index + 1 >= attempt.output_tokens
        if prompt.destination is Destination.HANDOFF:
            if is_over:
                self._drop(attempt)
            else:
                self._computed_s[attempt] = now
                if attempt in self._sendings:
                    self._sendings[attempt].computed(now)
        elif prompt.destination is Destination.NOWHERE:
            self._forget(attempt)
        if is_over and prompt.destination is not Destination.LOCAL:
            self._news.said.append((attempt, attempt.output_tokens))

    def stepping(self) -> None:
        """A step begins: what has landed since the last one is in it."""
        if not self._landed:
            return
        if self._may_lose_workers:
            self._world.at(self.engine.first_step_ends_s(), partial(self._spoke, list(self._landed)))
        for attempt, sending in self._landed.items():
            assert sending.transfer is not None
            handoff_s = self._world.now - sending.computed_s
            self._news.arrivals.append(Arrival(attempt, handoff_s, sending.wire_s, sending.transfer))
        self._landed.clear()

    def _spoke(self, attempts: list[Attempt]) -> None:
        """These have their first tokens from here: from now on their gateways do without the sources."""
        if not self.is_dead:
            said = [(attempt, attempt.first_index + 2) for attempt in attempts]
            self._neighbours.tell(self.place, News([], [], said, []))

    def ended(self, attempt: Attempt) -> None:
        self._news.said.append((attempt, attempt.output_tokens))
        self._forget(attempt)

    def preempted(self, attempt: Attempt, num_said: int) -> None:
        self._news.said.append((attempt, num_said))
        self._fail(attempt, FailureKind.PREEMPTED)
        self._forget(attempt)

    def demote(self, attempt: Attempt) -> None:
        """Give up KV that waits here for room elsewhere."""
        self._fail(attempt, FailureKind.PREEMPTED)
        self._drop(attempt)

    def _fail(self, attempt: Attempt, kind: FailureKind) -> None:
        self._news.failures.append((attempt, kind))

    def stepped(self, steps: Steps) -> None:
        self._observer.stepped(steps)

    def published(self) -> None:
        """Tell the gateways what happened, and the load if it has changed."""
        counts = self.engine.counts(len(self._expected), sum(self._expected.values()) if self._expected else 0)
        news = self._news
        if self._cache is not None:
            news.cache = self._cache.take_word()
        if counts != self._told:
            self._told = counts
            self._version += 1
            news.load = WorkerLoad(self._version, *counts)
        elif not (news.firsts or news.said or news.failures or news.arrivals or news.cache):
            return
        self._news = News([], [], [], [])
        self._neighbours.tell(self.place, news)

    # --- its end --------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """The process dies. What it had said by now was sent, and arrives."""
        said = self.engine.kill()
        for sending in self._sendings.values():
            sending.stop()
        self.is_dead = True
        self._news.said += said
        self._news.load = None
        self._neighbours.tell(self.place, self._news)

    def _send(self, deliver: Callable[[], None]) -> None:
        self._world.send(self._message_s, deliver)
