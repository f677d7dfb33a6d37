"""The loop of one worker: decide, run, apply, over a prefill and a decode service that share a runner and a block pool.

A role only limits what the router sends here; every worker can do both, which is what makes a worker `mixed`, lets
it prefill locally, and lets it change its role without reloading. Knows no peers, no sockets and no Ray: work comes in
by `post`, and what happens goes out through EngineEvents.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

from twinpool.cluster.block_names import BlockNames
from twinpool.cluster.cache_news import CacheNews
from twinpool.cluster.engine_events import NOT_FINITE, Destination, EngineEvents, Load
from twinpool.cluster.span_reports import SpanReports
from twinpool.cluster.step_batch import build_batch
from twinpool.core.messages import WorkerConfig
from twinpool.core.sampling import TokenLogprobs
from twinpool.decode_worker.service import DecodeService, Row, Sealed
from twinpool.model.batch import NO_TOKEN, Runner, StepResult
from twinpool.model.block_pool import BlockPool
from twinpool.model.sequence import Key, Sequence, Token
from twinpool.model.step import StepPlan, Wait
from twinpool.prefill_worker.batching import spare_blocks, token_budget
from twinpool.prefill_worker.service import PrefillService, Prompt

log = logging.getLogger(__name__)


class Engine:
    """Owns the device, the pool and both services. Every method but `post`, `start` and `stop` runs on its thread."""

    def __init__(self, config: WorkerConfig, runner: Runner, events: EngineEvents, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._events = events
        self._clock = clock
        self._chunk_tokens = config.chunk_tokens
        self._names = BlockNames(config, runner.cache.layout)
        self.spans = SpanReports(runner, config.chunk_tokens, events.group_ready)
        self.pool = BlockPool(runner.cache.num_blocks, config.block_tokens, prefix_cache=config.prefix_cache)
        self.cache_news = CacheNews(self.pool, events)
        self.prefill = PrefillService(self.pool, parked_limit_blocks=int(config.parked_share * self.pool.num_blocks))
        self.decode = DecodeService(self.pool, max_running=config.max_running)
        self._destinations: dict[Key, Destination] = {}
        self._demoting: set[Key] = set()
        self._num_preempted = self._num_wants = 0
        self._wait = Wait.NOTHING
        self._published: Load | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    # --- from any thread ------------------------------------------------------------------------------------------

    def post(self, command: Callable[[], None]) -> None:
        """Have `command` run on the engine thread before its next step."""
        self._inbox.append(command)
        self._wake.set()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the loop after the step under way."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        try:
            while not self._stopping:
                if not self.step():
                    self._wake.wait()
                    self._wake.clear()
        except Exception as error:  # the outermost loop of the thread; the worker fails the callers
            log.exception("the engine stopped")
            self._events.crashed(error)

    # --- commands -------------------------------------------------------------------------------------------------

    def submit(self, sequence: Sequence, destination: Destination) -> None:
        """Take a prompt. A local one first waits for room to decode, like a handoff to oneself."""
        sequence.chains = self._names.chains(sequence, may_be_lossy=destination is not Destination.HANDOFF)
        self._destinations[sequence.key] = destination
        if destination is Destination.LOCAL:
            self.decode.want(sequence, is_local=True)
        else:
            self.prefill.submit(sequence)

    def want(self, sequence: Sequence) -> None:
        """Queue a handoff for blocks; `bound` answers."""
        self._num_wants += 1
        sequence.chains = self._names.chains(sequence, may_be_lossy=True)
        self.decode.want(sequence, is_local=False)

    def adopt(self, key: Key, sealed: Sealed) -> None:
        """All KV of a handoff has arrived and been verified."""
        self.decode.adopt(key, sealed)

    def granted(self, key: Key) -> None:
        """A decode worker has room for this handoff."""
        self._demoting.discard(key)
        self.prefill.granted(key)

    def ungranted(self, key: Key) -> None:
        """The handoff lost its target. What is parked beyond the share that may be is given up, youngest first."""
        self.prefill.ungranted(key)
        self._demote(self.prefill.excess_parked_blocks)

    def renew(self, key: Key, epoch: int) -> None:
        """The handoff goes to another target, under a new epoch."""
        self._demoting.discard(key)
        self.prefill.renew(key, epoch)
        if key in self._destinations:
            self._destinations[Key(key.request_id, epoch)] = self._destinations.pop(key)

    def cancel(self, key: Key) -> None:
        """Stop working on an attempt. Blocks that a handoff still reads or writes stay until it releases them."""
        self._destinations.pop(key, None)
        self.prefill.cancel(key)
        self.decode.cancel(key)

    def release_source(self, key: Key) -> None:
        self._demoting.discard(key)
        self.prefill.release(key)

    def release_target(self, key: Key) -> None:
        self.decode.drop(key)

    # --- one step -------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Run one step if there is work; False when the loop may sleep."""
        while self._inbox:
            self._inbox.popleft()()
        now = self._clock()
        plan = self.decode.decide(now, busy_blocks=self.prefill.busy_blocks, parked_blocks=self.prefill.parked_blocks)
        rows, victims = self.decode.rows(plan.decode_rows), self.decode.rows(plan.preempt)
        self._preempt(victims)
        self.decode.reserve_next(rows)
        self._perform_grants(plan)
        prefill_plan = self._decide_prefill(plan, now)
        self._wait = plan.wait or prefill_plan.wait
        if plan.is_empty and prefill_plan.is_empty:
            self._publish([])
            return bool(victims)
        prompts = self._start_chunks(prefill_plan, now)
        batch = build_batch([row.sequence for row in rows], prompts, self._runner.eos_token_ids)
        to_send = [prompt for prompt in prompts if self._is_handoff(prompt.sequence.key)]
        result = self._runner.run(batch, lambda first, end: self.spans.computed(to_send, first, end))
        for score, logprobs in zip(batch.scores, result.scores, strict=True):
            prompts[score.row - len(rows)].sequence.prompt_logprobs.extend(logprobs)
        self._apply(rows, prompts, result, now)
        return True

    def _preempt(self, rows: list[Row]) -> None:
        """Give their blocks to older sequences; full ones stay in the prefix cache until they are needed."""
        for row in rows:
            self.decode.drop(row.sequence.key)
            self._events.preempted(row.sequence.key)
        self._num_preempted += len(rows)

    def _decide_prefill(self, plan: StepPlan, now: float) -> StepPlan:
        pool, prefill = self.pool, self.prefill
        if not prefill.num_waiting:
            return StepPlan()
        promised = self.decode.peak_blocks() + prefill.busy_blocks + prefill.parked_blocks
        spare = spare_blocks(pool.num_free, pool.num_blocks, promised, plan.demote_blocks)
        budget = token_budget(self._chunk_tokens, len(plan.decode_rows), pool.block_tokens)
        return prefill.decide(now, token_budget=budget, spare_blocks=spare)

    def _perform_grants(self, plan: StepPlan) -> None:
        for _ in plan.grants:  # always the head of the queue
            row = self.decode.grant_first()
            if row is None:
                break
            sequence = row.sequence
            if row.is_local:
                self.prefill.submit_local(sequence)
            else:
                skip = sequence.cached_tokens // self.pool.block_tokens
                self._events.bound(sequence.key, list(sequence.block_ids), skip)
        self._demote(plan.demote_blocks)

    def _demote(self, num_blocks: int) -> None:
        """Ask for parked handoffs to be given up, youngest first; their blocks come back by `release_source`."""
        pending = sum(self.prefill.outgoing_blocks(key) for key in self._demoting)
        while pending < num_blocks:
            key = self.prefill.youngest_parked(excluding=self._demoting)
            if key is None:
                return
            pending += self.prefill.outgoing_blocks(key)
            self._demoting.add(key)
            self._events.demote(key)

    def _start_chunks(self, plan: StepPlan, now: float) -> list[Prompt]:
        prompts = []
        for chunk in plan.chunks:
            prompt = self.prefill.prompt(chunk.row)
            if prompt.started_s is None:
                self._start(chunk.row, prompt, now)
            prompt.chunk_tokens = min(chunk.num_tokens, prompt.remaining_tokens)
            prompts.append(prompt)
        return prompts

    def _start(self, row: int, prompt: Prompt, now: float) -> None:
        sequence = prompt.sequence
        is_handoff = self._is_handoff(sequence.key)
        self.prefill.start(row, now, for_handoff=is_handoff)
        if is_handoff:
            self._events.begin_source(sequence.key, len(sequence.token_ids), list(sequence.block_ids))
            self.spans.cached(sequence)

    def _is_handoff(self, key: Key) -> bool:
        return self._destinations.get(key) is Destination.HANDOFF

    def _apply(self, rows: list[Row], prompts: list[Prompt], result: StepResult, step_s: float) -> None:
        tokens = []
        sampled = list(zip(result.token_ids.tolist(), result.logprobs, strict=True))
        self.decode.stepped(rows)
        for row, (token_id, logprobs) in zip(rows, sampled[: len(rows)], strict=True):
            sequence = row.sequence
            if token_id == NO_TOKEN:
                self._events.failed(sequence.key, NOT_FINITE)
                self.decode.drop(sequence.key)
                continue
            sequence.token_ids.append(token_id)
            finish = sequence.finish_reason(self._runner.eos_token_ids, self._runner.max_model_len)
            tokens.append(self.decode.apply(row, token_id, finish, step_s, logprobs))
        done = [prompt for prompt in prompts if prompt.is_last_chunk]
        for prompt in prompts:
            self.prefill.advance(prompt)
        for prompt, (token_id, logprobs) in zip(done, sampled[len(rows) :], strict=True):
            if token_id == NO_TOKEN:
                self._abandon(prompt)
            else:
                tokens.append(self._first_token(prompt, token_id, logprobs))
        self._publish(tokens)

    def _abandon(self, prompt: Prompt) -> None:
        """A prompt that gives no token: only its own request fails."""
        key = prompt.sequence.key
        self._events.failed(key, NOT_FINITE)  # first: the end of the handoff forgets the request
        if self._is_handoff(key):
            self._events.cancel_source(key)
        self.cancel(key)

    def _publish(self, tokens: list[Token]) -> None:
        self.cache_news.tell()
        load = self.load()
        if tokens or load != self._published:
            self._published = load
            self._events.stepped(tokens, load)

    def _first_token(self, prompt: Prompt, token_id: int, logprobs: TokenLogprobs | None) -> Token:
        sequence = prompt.sequence
        sequence.token_ids.append(token_id)
        finish = sequence.finish_reason(self._runner.eos_token_ids, self._runner.max_model_len)
        now = self._clock()
        token = self.prefill.finish(prompt, token_id, finish, now, logprobs)
        destination = self._destinations.pop(sequence.key, None)
        if destination is Destination.HANDOFF:
            if finish is None:
                self._events.computed(sequence.key, token_id, now)
            else:
                self._events.cancel_source(sequence.key)
        elif destination is Destination.LOCAL:
            if finish is None:
                self.decode.local_ready(sequence.key)
            else:
                self.decode.end(sequence.key)
        return token

    # --- what is known --------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether neither service has anything to do, now or later."""
        return self.prefill.is_idle and self.decode.is_idle and not self._inbox

    def load(self) -> Load:
        """A snapshot for the routers."""
        prefill, decode = self.prefill, self.decode
        return Load(
            free_blocks=self.pool.num_free,
            running=decode.num_running,
            context_tokens=decode.context_tokens,
            waiting_prefills=prefill.num_waiting,
            waiting_prefill_tokens=prefill.waiting_tokens,
            reservations=decode.num_wanted,
            reserved_blocks=decode.wanted_blocks,
            parked_blocks=prefill.parked_blocks,
            peak_blocks=decode.recent_peak_blocks(),
            cause=str(self._wait),
            preempted=self._num_preempted,
            wants=self._num_wants,
        )
