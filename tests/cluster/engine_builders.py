"""Builders for engines and clusters without Ray."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Load
from twinpool.core.messages import Goal, Request, Role, WorkerConfig
from twinpool.core.sampling import SamplingParams
from twinpool.decode_worker.lengths import LengthHistory
from twinpool.kv_transfer.plan import Span
from twinpool.model.modelled_runner import load_modelled
from twinpool.model.sequence import Key, Sequence, Token

BLOCK_TOKENS = 8


@dataclass
class Recorder:
    """Engine events, kept."""

    tokens: list[Token] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    sources: list[tuple[Key, int, list[int]]] = field(default_factory=list)
    spans: list[tuple[Key, Span]] = field(default_factory=list)
    done: list[tuple[Key, int]] = field(default_factory=list)
    cancelled: list[Key] = field(default_factory=list)
    demoted: list[Key] = field(default_factory=list)
    preemptions: list[Key] = field(default_factory=list)
    failures: list[tuple[Key, str]] = field(default_factory=list)
    bindings: list[tuple[Key, list[int], int]] = field(default_factory=list)

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None:
        self.sources.append((key, num_tokens, block_ids))

    def group_ready(self, key: Key, span: Span) -> None:
        self.spans.append((key, span))

    def computed(self, key: Key, first_token: int, at_s: float) -> None:
        self.done.append((key, first_token))

    def cancel_source(self, key: Key) -> None:
        self.cancelled.append(key)

    def demote(self, key: Key) -> None:
        self.demoted.append(key)

    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None:
        self.bindings.append((key, block_ids, skip_blocks))

    def preempted(self, key: Key) -> None:
        self.preemptions.append(key)

    def failed(self, key: Key, reason: str) -> None:
        self.failures.append((key, reason))

    def stepped(self, tokens: list[Token], load: Load) -> None:
        self.tokens += tokens
        self.loads.append(load)

    def crashed(self, error: Exception) -> None:
        raise error

    def answer(self, request_id: str) -> list[int]:
        return [token.token_id for token in self.tokens if token.key.request_id == request_id]


class Optimist(LengthHistory):
    """Takes every answer to be about to end: sequences are let in by what they hold now, as thrashing systems do."""

    @property
    def error_tokens(self) -> float:
        return 0.0

    def predict(
        self, written: NDArray[np.int64], limits: NDArray[np.int64], turns: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        return np.minimum(written + 1, limits)


def make_config(**changes: object) -> WorkerConfig:
    values: dict[str, object] = {
        "worker_id": "mixed-0",
        "role": Role.MIXED,
        "model": "modelled:instant",
        "max_model_len": 256,
        "kv_bytes": 1 << 20,
        "block_tokens": BLOCK_TOKENS,
        "chunk_tokens": 16,
    }
    return WorkerConfig(**(values | changes))  # type: ignore[arg-type]


def make_engine(events: Recorder, **changes: object) -> Engine:
    config = make_config(**changes)
    runner = load_modelled(
        config.model, max_model_len=config.max_model_len, kv_bytes=config.kv_bytes, block_tokens=config.block_tokens
    )
    return Engine(config, runner, events, lambda: 0.0)


def make_request(request_id: str = "r", prompt: range = range(5, 40), **sampling: object) -> Request:
    values: dict[str, object] = {"max_tokens": 8, "temperature": 0.0, "seed": 1}
    return Request(
        request_id=request_id,
        epoch=1,
        token_ids=tuple(prompt),
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(**(values | sampling)),  # type: ignore[arg-type]
        goal=Goal(1.0, 0.05),
    )


def make_sequence(request: Request) -> Sequence:
    return Sequence(request, "gateway-0", 0.0, list(request.token_ids))
