"""Our side of `bench engine`: a worker's engine on its own thread, prompts in, tokens out; no gateway and no gRPC.

Knows the engine and what it reports; nothing of whom it is compared with.
"""

import threading
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial

from twinpool.cluster.bench.generation import Generations, GenerationTimes
from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Destination, Load
from twinpool.core.errors import Internal
from twinpool.core.messages import Goal, Request, Role, WorkerConfig
from twinpool.core.sampling import SamplingParams
from twinpool.kv_transfer.plan import Span
from twinpool.model.load import load_runner
from twinpool.model.sequence import Key, Sequence, Token
from twinpool.model.shape import load_shape

BLOCK_TOKENS = 16
MIN_KV_BYTES = 64 * 2**20
DEADLINE_S = 3600.0
GOAL = Goal(1.0, 0.05)  # the engine does not read it


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """One engine to measure."""

    model: str
    dtype: str
    threads: int
    max_model_len: int
    concurrency: int
    deterministic: bool = False
    quantization: str = "none"

    def worker_config(self) -> WorkerConfig:
        """The configuration that a mixed worker would have: room for twice the load, everything else by default."""
        kv_token_bytes = load_shape(self.model, self.dtype).kv_token_bytes
        peak_tokens = self.concurrency * (self.max_model_len + BLOCK_TOKENS)
        return WorkerConfig(
            worker_id="bench-0",
            role=Role.MIXED,
            model=self.model,
            max_model_len=self.max_model_len,
            kv_bytes=max(MIN_KV_BYTES, 2 * peak_tokens * kv_token_bytes),
            block_tokens=BLOCK_TOKENS,
            dtype=self.dtype,
            threads=self.threads,
            deterministic=self.deterministic,
            quantization=self.quantization,
        )


class OurEngine:
    """Owns an engine and its thread. Raises SpecError when the model cannot be loaded as asked."""

    def __init__(self, setup: EngineSetup) -> None:
        config = setup.worker_config()
        self._runner = load_runner(config)
        self.dtype = self._runner.cache.layout.dtype
        self._events = _Events()
        self._engine = Engine(config, self._runner, self._events, time.monotonic)
        self._engine.start()
        self._num_runs = 0

    def generate(self, prompts: Many[list[int]], new_tokens: int) -> Generations:
        """Answer all prompts at once, greedily, each with exactly so many tokens."""
        self._num_runs += 1
        sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True, seed=0)
        sequences = [
            Sequence(_request(f"{self._num_runs}-{number}", prompt, sampling), "bench", float(number), list(prompt))
            for number, prompt in enumerate(prompts)
        ]
        self._events.expect([sequence.key for sequence in sequences])
        destination = Destination.LOCAL if new_tokens > 1 else Destination.NOWHERE
        started_s = time.perf_counter()
        self._engine.post(partial(self._submit, sequences, destination))
        self._events.wait()
        return self._events.generations(started_s, new_tokens)

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.stop()

    def _submit(self, sequences: list[Sequence], destination: Destination) -> None:
        for sequence in sequences:
            self._engine.submit(sequence, destination)


def _request(request_id: str, prompt: list[int], sampling: SamplingParams) -> Request:
    return Request(request_id, 1, tuple(prompt), len(prompt), sampling, GOAL)


class _Events:
    """EngineEvents: notes tokens and when they came, and says when all answers are there. Local prompts only."""

    def __init__(self) -> None:
        self._open: set[Key] = set()
        self._tokens: dict[Key, list[int]] = {}
        self._times_s: dict[Key, list[float]] = {}
        self._cached_tokens = 0
        self._error = ""
        self._done = threading.Event()

    def expect(self, keys: Many[Key]) -> None:
        """Forget the last run; while it waits for orders, the engine reports no tokens."""
        self._done.clear()
        self._cached_tokens = 0
        self._tokens = {key: [] for key in keys}
        self._times_s = {key: [] for key in keys}
        self._open = set(keys)

    def wait(self) -> None:
        """Return when all answers are complete. Raises Internal if one never will be."""
        if not self._done.wait(DEADLINE_S):
            self._error = f"the engine did not finish within {DEADLINE_S:g} s"
        if self._error:
            raise Internal(self._error)

    def generations(self, started_s: float, new_tokens: int) -> Generations:
        """What the run gave; it had no help of the prefix cache, or it counts for nothing."""
        if self._cached_tokens:
            raise Internal(f"the prefix cache helped with {self._cached_tokens} tokens; prompts have to be distinct")
        times = [
            GenerationTimes(each[0] - started_s, (each[-1] - each[0]) / (new_tokens - 1) if new_tokens > 1 else None)
            for each in self._times_s.values()
        ]
        wall_s = max(each[-1] for each in self._times_s.values()) - started_s
        return Generations([list(tokens) for tokens in self._tokens.values()], wall_s, times)

    def stepped(self, tokens: list[Token], load: Load) -> None:  # noqa: ARG002
        now = time.perf_counter()
        for token in tokens:
            self._tokens[token.key].append(token.token_id)
            self._times_s[token.key].append(now)
            self._cached_tokens += token.cached_tokens
            if token.finish is not None:
                self._open.discard(token.key)
        if not self._open:
            self._done.set()

    def failed(self, key: Key, reason: str) -> None:
        self._fail(f"{key.request_id}: {reason}")

    def crashed(self, error: Exception) -> None:
        self._fail(f"the engine stopped: {error!r}")

    def preempted(self, key: Key) -> None:
        self._fail(f"{key.request_id} was preempted")

    def _fail(self, error: str) -> None:
        self._error = error
        self._done.set()

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None: ...
    def group_ready(self, key: Key, span: Span) -> None: ...
    def computed(self, key: Key, first_token: int, at_s: float) -> None: ...
    def cancel_source(self, key: Key) -> None: ...
    def demote(self, key: Key) -> None: ...
    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None: ...
    def cache_listed(self, gateway_id: str, hashes: list[bytes]) -> None: ...
    def cache_changed(self, changes: dict[bytes, bool]) -> None: ...
