"""The loop of a simulated worker: decide, take the time it takes, apply, as cluster/engine.py does in a live one.

Decisions are those of decode_worker/batching.py and prefill_worker/batching.py. Steps whose decision stays the same are
run in one go, and cut short at the next step's end when something happens. Knows no peer and no gateway.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinpool.model.step import StepPlan, Wait
from twinpool.prefill_worker.batching import spare_blocks, token_budget
from twinpool.simulator.attempt import Attempt, Destination
from twinpool.simulator.decode_rows import NO_STEP, DecodeRows, Row
from twinpool.simulator.observer import Steps
from twinpool.simulator.pool import CountedPool
from twinpool.simulator.prompt_queue import Prompt, PromptQueue
from twinpool.simulator.scenario import Scenario, SimulatedWorker
from twinpool.simulator.step_run import MOST_STEPS, StepRun, draw_mean_noise
from twinpool.simulator.world import World

Counts = tuple[int, int, int, int, int, int, int, int, int, str]  # the fields of WorkerLoad after its version


class EngineEvents(Protocol):
    """What an engine reports; compare cluster/engine_events.py. None takes time."""

    def began(self, prompt: Prompt) -> None: ...
    def computing(self, prompt: Prompt, started_s: float, ends_s: float) -> None: ...
    def computed(self, prompt: Prompt) -> None: ...
    def bound(self, row: Row) -> None: ...
    def stepping(self) -> None: ...
    def preempted(self, attempt: Attempt, num_said: int) -> None: ...
    def demote(self, attempt: Attempt) -> None: ...
    def ended(self, attempt: Attempt) -> None: ...
    def published(self) -> None: ...
    def stepped(self, steps: Steps) -> None: ...


class SimulatedEngine:
    """Owns a worker's pool, its rows and its prompts. ``slowness`` may be set at any time, for steps to come."""

    def __init__(
        self, world: World, place: int, worker: SimulatedWorker, scenario: Scenario, events: EngineEvents, start: int
    ) -> None:
        kind = worker.kind
        self._world = world
        self._place = place
        self._form = kind.truth
        self._send_s, self._join_s = kind.send_s, kind.join_s
        self._block_tokens = kind.block_tokens
        self._chunk_tokens = scenario.chunk_tokens
        self._events = events
        self._noise = scenario.step_noise
        self._random = random.Random(f"{scenario.seed} {worker.worker_id} {start}")
        self._speed = worker.speed
        self.slowness = 1.0
        self.pool = CountedPool(kind.num_blocks, scenario.piece_blocks(kind))
        self.rows = DecodeRows(self.pool, kind.block_tokens, scenario.max_running)
        self.prompts = PromptQueue(self.pool, kind.block_tokens, int(scenario.parked_share * kind.num_blocks))
        self._demoting: set[Attempt] = set()
        self._num_joining = 0  # sequences that have arrived since the last step
        self._loads_to_tell = 0  # one by one, as an order has come
        self._wait = Wait.NOTHING
        self._inbox: deque[Callable[[], object]] = deque()
        self._run: StepRun | None = None
        self._is_turning = False
        self._is_dead = False

    # --- commands -------------------------------------------------------------------------------------------------

    def post(self, command: Callable[[], object]) -> None:
        """Have ``command`` run before the next step, which begins when the step under way ends."""
        self._inbox.append(command)
        if self._run is not None:
            self._cut(self._run)
        elif not self._is_turning and not self._is_dead:
            self._turn()

    def submit(self, attempt: Attempt, destination: Destination, came_s: float) -> None:
        """Take a prompt. A local one first waits for room to decode, like a handoff to oneself."""
        if destination is Destination.LOCAL:
            self.rows.want(attempt, came_s, is_local=True)
        else:
            self.prompts.submit(Prompt(attempt, destination, came_s))

    def ordered(self) -> None:
        """A gateway's order has come, which the gateway counts itself until two more loads have: so the next two are
        told after one step each, as a live engine tells all of them."""
        self._loads_to_tell = 2
        if self._run is not None:
            self._cut(self._run)

    def adopt(self, attempt: Attempt) -> None:
        """All KV of a handoff has arrived, or it is gone."""
        self._num_joining += self.rows.ready(attempt)

    def granted(self, attempt: Attempt) -> bool:
        """A decode worker has room for this handoff. False: it is gone."""
        self._demoting.discard(attempt)
        return self.prompts.granted(attempt)

    def release_source(self, attempt: Attempt) -> None:
        self._demoting.discard(attempt)
        self.prompts.release(attempt)

    def cancel(self, attempt: Attempt) -> None:
        """Stop working on an attempt, and give back all that it holds."""
        self._demoting.discard(attempt)
        self.prompts.cancel(attempt)
        self.rows.drop(attempt)

    def kill(self) -> list[tuple[Attempt, int]]:
        """The process dies: whoever was here, with the tokens of its whole answer that had been said by now."""
        run, num_done = self._run, 0
        stepping = set[int]()
        if run is not None:
            assert run.timer is not None
            run.timer.cancel()
            num_done = self._tell_broken(run)
            stepping.update(run.rows.tolist())
        said = {}
        for place, row in enumerate(self.rows.all_rows()):
            said[row.attempt] = self.rows.tokens_said(row) + (num_done if place in stepping else 0)
        self._is_dead, self._run = True, None
        self._inbox.clear()
        return list(said.items())

    # --- one turn -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Decide until there is something to compute, or nothing at all."""
        self._is_turning = True
        while self._run is None:
            while self._inbox:
                self._inbox.popleft()()
            if not self._decide():
                break
        self._is_turning = False

    def _decide(self) -> bool:
        """Begin steps, or find that there is nothing to do. False: sleep until something is posted."""
        now, prompts = self._world.now, self.prompts
        plan = self.rows.decide(now, busy_blocks=prompts.busy_blocks, parked_blocks=prompts.parked_blocks)
        indices = self.rows.places(plan.decode_rows)
        if plan.preempt:
            decoding = self.rows.rows(plan.decode_rows)
            self._preempt(self.rows.rows(plan.preempt))
            indices = self.rows.places_of(decoding)
        self.rows.reserve_next(indices)
        if plan.grants or plan.demote_blocks:
            indices = self._perform_grants(plan, indices)
        prefill_plan = self._decide_prefill(plan, now)
        self._wait = plan.wait or prefill_plan.wait
        if not len(indices) and not prefill_plan.chunks:
            self._publish()
            return bool(plan.preempt) or bool(self._inbox)
        self._begin(indices, prefill_plan, plan.repeat)
        return True

    def _preempt(self, rows: list[Row]) -> None:
        for row in rows:
            num_said = self.rows.tokens_said(row)
            self.rows.drop(row.attempt)
            self._events.preempted(row.attempt, num_said)

    def _perform_grants(self, plan: StepPlan, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Grant, and ask for blocks; return where the rows at ``indices`` are then."""
        for _ in plan.grants:  # always the head of the queue
            row = self.rows.grant_first()
            if row is None:
                break
            indices += indices >= self.rows.place(row)  # those behind it have moved by one
            if row.is_local:
                self._start_local(row)
            else:
                self._events.bound(row)
        self._demote(plan.demote_blocks)
        return indices

    def _start_local(self, row: Row) -> None:
        prompt = Prompt(row.attempt, Destination.LOCAL, row.came_s, row.holding)
        prompt.num_computed = prompt.cached_tokens = row.cached_tokens
        self.prompts.submit(prompt)

    def _demote(self, num_blocks: int) -> None:
        """Ask for parked handoffs to be given up, youngest first."""
        if not num_blocks:
            return
        pending = sum(self.prompts.outgoing_blocks(attempt) for attempt in self._demoting)
        while pending < num_blocks:
            attempt = self.prompts.youngest_parked(excluding=self._demoting)
            if attempt is None:
                return
            pending += self.prompts.outgoing_blocks(attempt)
            self._demoting.add(attempt)
            self._events.demote(attempt)

    def _decide_prefill(self, plan: StepPlan, now: float) -> StepPlan:
        prompts, pool = self.prompts, self.pool
        if not prompts.num_waiting:
            return NO_STEP
        promised = self.rows.peak_blocks() + prompts.busy_blocks + prompts.parked_blocks
        spare = spare_blocks(pool.num_free, pool.num_blocks, promised, plan.demote_blocks)
        budget = token_budget(self._chunk_tokens, len(plan.decode_rows), self._block_tokens)
        return prompts.decide(now, token_budget=budget, spare_blocks=spare)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _begin(self, indices: NDArray[np.intp], plan: StepPlan, repeat: int) -> None:
        now = self._world.now
        chosen = [(self.prompts.prompt(chunk.row), chunk) for chunk in plan.chunks]
        for prompt, chunk in chosen:
            if prompt.started_s is None:
                self.prompts.start(chunk.row, now)
                if prompt.destination is Destination.HANDOFF:
                    self._events.began(prompt)
            prompt.chunk_tokens = min(chunk.num_tokens, prompt.remaining_tokens)
        num_steps, first_end, context = 1, 0, 0
        if len(indices):
            first_end, context = self.rows.outlook(indices)
            # Whether a prompt may start is asked anew before each step, as the forecast moves a little with every one.
            is_single = self.prompts.num_waiting or self._loads_to_tell
            num_steps = 1 if is_single else min(repeat, first_end, MOST_STEPS)
        noise = draw_mean_noise(self._random, self._noise, num_steps)
        prompts = [prompt for prompt, _ in chosen]
        factor, extra_s = self.slowness / self._speed, self._take_extra_s(prompts)
        run = StepRun(self._form, factor, now, num_steps, indices, context, prompts, extra_s, noise, first_end)
        self._run = run
        ends_s = now + run.seconds(num_steps)
        run.timer = self._world.at(ends_s, self._complete)
        if len(indices):
            self._events.stepping()
        for prompt in prompts:
            if prompt.destination is Destination.HANDOFF:
                self._events.computing(prompt, now, ends_s)

    def _take_extra_s(self, prompts: list[Prompt]) -> float:
        """What the next step takes for handoffs that arrived before it, and for those whose prompts it completes."""
        extra_s, self._num_joining = self._num_joining * self._join_s, 0
        if self._send_s:
            for prompt in prompts:
                if prompt.destination is Destination.HANDOFF and prompt.chunk_tokens == prompt.remaining_tokens:
                    extra_s += self._send_s
        return extra_s

    def first_step_ends_s(self) -> float:
        """When the first of the steps under way is over."""
        assert self._run is not None
        return self._run.started_s + self._run.seconds(1)

    def _cut(self, run: StepRun) -> None:
        """Let the run end with the step under way."""
        if run.num_steps == 1 or run.is_cut:
            return
        run.is_cut = True
        num_steps = min(run.num_steps, run.steps_done(self._world.now) + 1)
        if num_steps < run.num_steps:
            assert run.timer is not None
            run.timer.cancel()
            run.num_steps = num_steps
            run.timer = self._world.at(run.started_s + run.seconds(num_steps), self._complete)

    def _complete(self) -> None:
        run, self._run = self._run, None
        assert run is not None
        self._is_turning = True  # what is posted meanwhile waits for the turn below
        self._tell_steps(run, run.started_s, self._world.now, run.num_steps, 0)
        if len(run.rows):
            self.rows.stepped(run.rows, run.num_steps)
            for row in self.rows.complete(run.rows) if run.num_steps == run.first_end else ():
                self.rows.end(row)
                self._events.ended(row.attempt)
        for prompt in run.prompts:
            self.prompts.advance(prompt)
        for prompt in run.prompts:
            if not prompt.remaining_tokens and self.prompts.find(prompt.attempt) is prompt:
                self._first_token(prompt)
        self._publish()
        self._turn()

    def _tell_steps(self, run: StepRun, started_s: float, ended_s: float, num_steps: int, num_before: int) -> None:
        """Tell of some of a run's steps, which others came before."""
        batch = len(run.rows)
        context_tokens = run.context_tokens + batch * num_before
        held_blocks = self.pool.num_held if num_steps else 0  # of one that is broken off nothing is left
        prefill_tokens = run.prompt_tokens if run.prompts else 0
        told = (self._place, started_s, ended_s, num_steps, prefill_tokens, len(run.prompts), batch)
        self._events.stepped(Steps(*told, context_tokens, held_blocks))

    def _tell_broken(self, run: StepRun) -> int:
        """Tell of the steps of a run that ends now with its worker, and of the last one, which it breaks off.

        Returns how many there were beside that one.
        """
        now, num_done = self._world.now, 0 if run.prompts else run.steps_done(self._world.now)
        broken_s = run.started_s + (run.seconds(num_done) if num_done else 0.0)
        if num_done:
            self._tell_steps(run, run.started_s, broken_s, num_done, 0)
        if broken_s < now:
            self._tell_steps(run, broken_s, now, 0, num_done)
        return num_done

    def _first_token(self, prompt: Prompt) -> None:
        self.prompts.finish(prompt)
        self._events.computed(prompt)
        if prompt.is_local:
            row = self.rows.find(prompt.attempt)
            assert row is not None
            if self._is_over(prompt.attempt):
                self.rows.end(row)
                self._events.ended(prompt.attempt)
            else:
                self.rows.ready(prompt.attempt)

    @staticmethod
    def _is_over(attempt: Attempt) -> bool:
        """Whether the token that its prefill samples is the last."""
        return attempt.first_index + 1 >= attempt.output_tokens

    def _publish(self) -> None:
        self._loads_to_tell = max(0, self._loads_to_tell - 1)
        self._events.published()

    # --- what is known --------------------------------------------------------------------------------------------

    def counts(self, reservations: int, reserved_blocks: int) -> Counts:
        """A snapshot for the routers; reservations are those that did not come here yet."""
        rows, prompts = self.rows, self.prompts
        return (
            self.pool.num_free,
            rows.num_running,
            rows.context_tokens,
            prompts.num_waiting,
            prompts.waiting_tokens,
            rows.num_wanted + reservations,
            rows.wanted_blocks + reserved_blocks,
            prompts.parked_blocks,
            rows.recent_peak_blocks(),
            self._wait.value,
        )
