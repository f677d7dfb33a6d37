"""One worker's engine in virtual time, live and simulated, under one script of jobs; each tells what it did when."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import numpy as np

from twinpool.cluster import engine_events as live
from twinpool.cluster.engine import Engine
from twinpool.core.messages import Goal, Request, Role, WorkerConfig
from twinpool.core.sampling import SamplingParams
from twinpool.decode_worker.lengths import LengthHistory
from twinpool.decode_worker.service import Sealed
from twinpool.kv_transfer.plan import Span
from twinpool.model.batch import Batch, OnLayers, StepResult
from twinpool.model.modelled_runner import ModelledRunner
from twinpool.model.modelled_shape import ModelledShape, StepLatency
from twinpool.model.sequence import Key, Sequence, Token
from twinpool.router.estimate import LinearForm
from twinpool.router.views import WorkerLoad
from twinpool.simulator.attempt import Attempt, Destination
from twinpool.simulator.decode_rows import Row
from twinpool.simulator.engine import SimulatedEngine
from twinpool.simulator.observer import Steps
from twinpool.simulator.prompt_queue import Prompt
from twinpool.simulator.scenario import PrefixCache, Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.world import World

FORM = LinearForm(5e-3, 1e-4, 3e-8, 10e-3, 7e-7, 1.3e-4)
BLOCK_TOKENS = 8
EOS = 0


@dataclass(frozen=True)
class Job:
    """One sequence. ``kind``: local, nowhere, handoff (it leaves), or arriving (it comes by a handoff)."""

    index: int
    at_s: float
    kind: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    delay_s: float  # until it is granted, or, arriving, from its blocks to its KV
    acknowledge_s: float = 0.01  # from the later of grant and first token
    cancel_s: float | None = None
    pieces: tuple[int, ...] = ()  # what its prompt begins with, a block each

    @property
    def request(self) -> Request:
        first = [10_000 + name for name in self.pieces for _ in range(BLOCK_TOKENS)]
        ids = [*first, *(100_000 * (self.index + 1) + place for place in range(self.prompt_tokens))]
        sampling = SamplingParams(max_tokens=self.max_tokens, seed=self.index)
        prompt = tuple(ids[: self.prompt_tokens])
        return Request(f"r{self.index:04}", 1, prompt, self.prompt_tokens, sampling, Goal(1, 1))


@dataclass
class Told:
    """What an engine did: ``(when, what, job)`` in order, and the loads it published."""

    events: list[tuple[float, str, int]] = field(default_factory=list)
    loads: list[tuple[float, WorkerLoad]] = field(default_factory=list)

    def sorted(self) -> list[tuple[float, str, int]]:
        """Events to the nanosecond, in an order that does not depend on who was told first."""
        return sorted((round(at_s, 9), what, index) for at_s, what, index in self.events)

    def count(self, what: str) -> int:
        return sum(event[1] == what for event in self.events)


@dataclass(frozen=True)
class Size:
    """Of the worker."""

    num_blocks: int = 60
    chunk_tokens: int = 64
    max_running: int = 8
    parked_share: float = 0.3
    shares_prefixes: bool = False


ALL_KINDS = ("local", "nowhere", "handoff", "handoff", "arriving", "arriving")
THAT_DECODE = ("local", "arriving")  # without the others no prompt waits for blocks while these decode


def draw_jobs(seed: int, num_jobs: int = 60, num_pieces: int = 0, kinds: tuple[str, ...] = ALL_KINDS) -> list[Job]:
    """Jobs that crowd a worker of the default size, their limits far above what most of them say."""
    draw = random.Random(seed)
    jobs, now = [], 0.0
    for index in range(num_jobs):
        now += draw.expovariate(draw.choice([3.0, 30.0]))
        kind = draw.choice(kinds)
        is_over = kind == "nowhere" or (kind != "arriving" and draw.random() < 0.1)  # by its first token
        output = 1 if is_over else draw.choice([draw.randint(2, 12), draw.randint(30, 120)])
        jobs.append(
            Job(
                index,
                now,
                kind,
                draw.randint(1, 150),
                output,
                draw.randint(output, 200),
                draw.choice([draw.uniform(0.001, 0.05), draw.uniform(0.1, 5.0)]),
                draw.uniform(0.001, 0.1),
                now + draw.uniform(0, 2) if draw.random() < 0.1 else None,
                tuple(draw.randint(0, 1) for _ in range(num_pieces)),
            )
        )
    return jobs


# --- live ---------------------------------------------------------------------------------------------------------


class Clock:
    """Virtual time for a live engine: what is due is done between two steps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._numbers), deed))

    def fire(self) -> None:
        while self._heap and self._heap[0][0] <= self.now:
            heapq.heappop(self._heap)[2]()

    def skip(self) -> bool:
        """Go on to what is due next; False if nothing is."""
        if self._heap:
            self.now = max(self.now, self._heap[0][0])
        return bool(self._heap)


class TimedRunner(ModelledRunner):
    """Computes nothing, takes the form's time, and ends each answer where the job says."""

    def __init__(self, clock: Clock, jobs: list[Job], num_blocks: int) -> None:
        shape = ModelledShape(StepLatency(), num_layers=1, layer_groups=(1,), eos_token_ids=(EOS,))
        block_bytes = shape.kv_token_bytes * BLOCK_TOKENS
        super().__init__(
            shape, model="timed", max_model_len=100_000, kv_bytes=num_blocks * block_bytes, block_tokens=BLOCK_TOKENS
        )
        assert self.cache.num_blocks == num_blocks
        self._time = clock
        self._lengths = [job.output_tokens for job in jobs]

    def run(self, batch: Batch, on_layers: OnLayers | None = None) -> StepResult:
        decoding = {sample.row for sample in batch.samples if sample.index}
        tokens = squares = context = 0
        for row, new in enumerate(np.diff(batch.cu_seqlens).tolist()):
            end = int(batch.context_lens[row])
            if row in decoding:
                context += end
            else:
                tokens, squares = tokens + new, squares + end**2 - (end - new) ** 2
        self._time.now += FORM.seconds(float(tokens), float(squares), float(context), float(len(decoding)))
        if on_layers is not None:
            on_layers(0, 1)
        said = [EOS if s.index + 1 >= self._lengths[s.sampling.seed or 0] else 7 for s in batch.samples]
        return StepResult(np.array(said, np.int64), (None,) * len(said))


class LiveWorker:
    """cluster/engine.py, with what is around it in a worker reduced to delays."""

    def __init__(self, jobs: list[Job], size: Size) -> None:
        self.told = Told()
        self._clock = Clock()
        self._jobs = jobs
        self._granted_s: dict[int, float] = {}
        self._computed_s: dict[int, float] = {}
        runner = TimedRunner(self._clock, jobs, size.num_blocks)
        config = WorkerConfig(
            "w", Role.MIXED, "timed", 100_000, runner.cache.num_blocks, BLOCK_TOKENS,
            prefix_cache=size.shares_prefixes, parked_share=size.parked_share,
            chunk_tokens=size.chunk_tokens, max_running=size.max_running,
        )  # fmt: skip
        self.engine = Engine(config, runner, self, lambda: self._clock.now)

    @property
    def lengths(self) -> LengthHistory:
        return self.engine.decode.lengths

    def run(self) -> Told:
        for job in self._jobs:
            self._clock.at(job.at_s, partial(self._begin, job))
            if job.cancel_s is not None:
                self._clock.at(job.cancel_s, partial(self._end, job))
        while True:
            self._clock.fire()
            if not self.engine.step() and not self.engine._inbox and not self._clock.skip():
                self.engine.decode.check()
                self.engine.pool.check()
                return self.told

    def _begin(self, job: Job) -> None:
        sequence = Sequence(job.request, "g", job.at_s, list(job.request.token_ids))
        if job.kind == "arriving":
            self._post(partial(self.engine.want, sequence))
        else:
            self._post(partial(self.engine.submit, sequence, live.Destination(job.kind)))

    def _post(self, command: Callable[[], None]) -> None:
        self.engine.post(command)

    def _end(self, job: Job) -> None:
        key = Key(job.request.request_id, 1)
        for end in (self.engine.cancel, self.engine.release_source, self.engine.release_target):
            self._post(partial(end, key))

    def _tell(self, what: str, key: Key) -> Job:
        job = self._jobs[int(key.request_id[1:])]
        self.told.events.append((self._clock.now, what, job.index))
        return job

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None:
        job = self._tell("began", key)
        granted_s = self._clock.now + job.delay_s
        self._clock.at(granted_s, partial(self._grant, job, key, granted_s))

    def _grant(self, job: Job, key: Key, at_s: float) -> None:
        self._granted_s[job.index] = at_s  # a step may have been under way
        self._post(partial(self.engine.granted, key))
        self._maybe_acknowledge(job, key)

    def _maybe_acknowledge(self, job: Job, key: Key) -> None:
        if job.index in self._granted_s and job.index in self._computed_s:
            since_s = max(self._granted_s[job.index], self._computed_s[job.index])
            release = partial(self._post, partial(self.engine.release_source, key))
            self._clock.at(since_s + job.acknowledge_s, release)

    def computed(self, key: Key, first_token: int, at_s: float) -> None:
        self._computed_s[int(key.request_id[1:])] = at_s
        self._maybe_acknowledge(self._jobs[int(key.request_id[1:])], key)

    def cancel_source(self, key: Key) -> None:
        self._post(partial(self.engine.release_source, key))

    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None:
        job = self._tell("bound", key)
        sealed = Sealed(7, 0.0, 0.0, 0.0, 0, 0.0)
        self._clock.at(self._clock.now + job.delay_s, partial(self._post, partial(self.engine.adopt, key, sealed)))

    def demote(self, key: Key) -> None:
        self._end(self._tell("demoted", key))

    def preempted(self, key: Key) -> None:
        self._tell("preempted", key)

    def stepped(self, tokens: list[Token], load: live.Load) -> None:
        for token in tokens:
            if token.prefill_s is not None:
                self._tell(f"first, {token.cached_tokens} cached", token.key)
            if token.finish is not None:
                self._tell("ended", token.key)
        shown = {name: getattr(load, name) for name in WorkerLoad.__slots__ if name != "version"}
        self.told.loads.append((self._clock.now, WorkerLoad(**shown)))

    def group_ready(self, key: Key, span: Span) -> None: ...
    def failed(self, key: Key, reason: str) -> None:
        raise AssertionError(reason)

    def crashed(self, error: Exception) -> None:
        raise error


# --- simulated ----------------------------------------------------------------------------------------------------


class SimulatedWorkerAlone:
    """simulator/engine.py, with the same delays around it."""

    def __init__(self, jobs: list[Job], size: Size) -> None:
        self.told = Told()
        self.steps: list[Steps] = []
        self._world = World(0)
        self._jobs = jobs
        self._attempts = [self._attempt(job, size) for job in jobs]
        self._granted_s: dict[int, float] = {}
        self._computed_s: dict[int, float] = {}
        kind = WorkerKind("k", FORM, 64, size.num_blocks, BLOCK_TOKENS)
        worker = SimulatedWorker("w", Role.MIXED, kind)
        scenario = Scenario(
            (worker,), {}, chunk_tokens=size.chunk_tokens, max_running=size.max_running,
            parked_share=size.parked_share, hash_tokens=BLOCK_TOKENS,
            prefix_cache=PrefixCache.HASHES if size.shares_prefixes else PrefixCache.OFF,
        )  # fmt: skip
        self.engine = SimulatedEngine(self._world, 0, worker, scenario, self, 0)

    @staticmethod
    def _attempt(job: Job, size: Size) -> Attempt:
        chained = [job.pieces[: place + 1] for place in range(min(len(job.pieces), job.prompt_tokens // BLOCK_TOKENS))]
        names = tuple(("", hash(chain)) for chain in chained) if size.shares_prefixes else ()
        return Attempt(job.request, job.index, 0, job.at_s, job.output_tokens, names, BLOCK_TOKENS)

    @property
    def lengths(self) -> LengthHistory:
        return self.engine.rows.lengths

    def run(self) -> Told:
        for job, attempt in zip(self._jobs, self._attempts, strict=True):
            self._world.at(job.at_s, partial(self._begin, job, attempt))
            if job.cancel_s is not None:
                self._world.at(job.cancel_s, partial(self._end, attempt))
        self._world.run()
        self.engine.pool.check(self.engine.rows.holdings() + self.engine.prompts.holdings())
        return self.told

    def _begin(self, job: Job, attempt: Attempt) -> None:
        if job.kind == "arriving":
            self.engine.post(partial(self.engine.rows.want, attempt, job.at_s, is_local=False))
        else:
            self.engine.post(partial(self.engine.submit, attempt, Destination(job.kind), job.at_s))

    def _end(self, attempt: Attempt) -> None:
        self.engine.post(partial(self.engine.cancel, attempt))

    def _tell(self, what: str, attempt: Attempt) -> Job:
        self.told.events.append((self._world.now, what, attempt.index))
        return self._jobs[attempt.index]

    def began(self, prompt: Prompt) -> None:
        job = self._tell("began", prompt.attempt)
        self._world.after(job.delay_s, partial(self._grant, prompt.attempt))

    def _grant(self, attempt: Attempt) -> None:
        self._granted_s[attempt.index] = self._world.now
        self.engine.post(partial(self.engine.granted, attempt))
        self._maybe_acknowledge(attempt)

    def _maybe_acknowledge(self, attempt: Attempt) -> None:
        index = attempt.index
        if index in self._granted_s and index in self._computed_s:
            since_s = max(self._granted_s[index], self._computed_s[index])
            release = partial(self.engine.post, partial(self.engine.release_source, attempt))
            self._world.at(since_s + self._jobs[index].acknowledge_s, release)

    def computing(self, prompt: Prompt, started_s: float, ends_s: float) -> None: ...

    def computed(self, prompt: Prompt) -> None:
        attempt = prompt.attempt
        self._tell(f"first, {prompt.cached_tokens} cached", attempt)
        if attempt.output_tokens == 1 and prompt.destination is not Destination.LOCAL:
            self._tell("ended", attempt)
            if prompt.destination is Destination.HANDOFF:
                self._end(attempt)
        elif prompt.destination is Destination.HANDOFF:
            self._computed_s[attempt.index] = self._world.now
            self._maybe_acknowledge(attempt)

    def bound(self, row: Row) -> None:
        job = self._tell("bound", row.attempt)
        ready = partial(self.engine.rows.ready, row.attempt)
        self._world.after(job.delay_s, partial(self.engine.post, ready))

    def demote(self, attempt: Attempt) -> None:
        self._tell("demoted", attempt)
        self._end(attempt)

    def preempted(self, attempt: Attempt, num_said: int) -> None:
        self._tell("preempted", attempt)

    def ended(self, attempt: Attempt) -> None:
        self._tell("ended", attempt)

    def published(self) -> None:
        load = WorkerLoad(0, *self.engine.counts(0, 0))
        if not self.told.loads or load != self.told.loads[-1][1]:
            self.told.loads.append((self._world.now, load))

    def stepped(self, steps: Steps) -> None:
        self.steps.append(steps)

    def stepping(self) -> None: ...
