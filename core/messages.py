"""The vocabulary that workers, router and gateway share: frozen values, no behaviour beyond checking themselves.

Knows no transport, no tensor and no policy. Sampling parameters, their limits and their defaults are defined here
and nowhere else.
"""

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum

from twinpool.core.errors import InvalidRequest

MAX_SEED = 2**64 - 1
MAX_STOP_TOKEN_IDS = 64
MAX_OUTPUT_TOKENS = 2**20
MAX_GOAL_S = 86_400.0


class Role(StrEnum):
    """What a worker accepts now."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # end-of-sequence or a stop token
    LENGTH = "length"  # max_tokens or the context is full


class FailureKind(StrEnum):
    """Why one attempt of a request ended without an answer; the ledger decides what follows."""

    WORKER_LOST = "worker_lost"
    TRANSFER_FAILED = "transfer_failed"
    PREEMPTED = "preempted"
    CORRUPTED = "corrupted"
    PEER_LOST = "peer_lost"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Goal:
    """Upper bounds a request should meet: seconds from arrival to first token, mean seconds between later tokens."""

    ttft_s: float
    tpot_s: float

    def check(self) -> None:
        """Raise InvalidRequest unless both are finite, positive and under a day."""
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and math.isfinite(value) and 0 < value <= MAX_GOAL_S):
                raise InvalidRequest(f"goal.{name}", f"must be over 0 and at most {MAX_GOAL_S:g} s, not {value!r}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next token; the field names are the field's usual ones.

    ``top_k=0`` and ``top_p=1`` switch those filters off; ``temperature=0`` is greedy. A ``seed`` of None lets the
    gateway draw one, after which sampling is a function of (seed, position) alone.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    # Named so that asking for them is refused by name until the engine has them (check below).
    min_tokens: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    n: int = 1

    def check(self) -> None:
        """Raise InvalidRequest for the first field outside its limits, or not supported yet."""
        _whole("max_tokens", self.max_tokens, 1, MAX_OUTPUT_TOKENS)
        _real("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _real("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise InvalidRequest("sampling.top_p", "must be over 0")
        if self.seed is not None:
            _whole("seed", self.seed, 0, MAX_SEED)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest("sampling.ignore_eos", f"must be true or false, not {self.ignore_eos!r}")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest("sampling.stop_token_ids", f"has over {MAX_STOP_TOKEN_IDS} ids")
        for token_id in self.stop_token_ids:
            _whole("stop_token_ids", token_id, 0, 2**31 - 1)
        for name in _NOT_YET:
            if getattr(self, name) != _DEFAULTS[name]:
                raise InvalidRequest(f"sampling.{name}", "is not supported by this version")


_DEFAULTS = {item.name: item.default for item in fields(SamplingParams)}
_NOT_YET = (
    "min_tokens",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "logprobs",
    "n",
)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(f"sampling.{name}", f"must be a whole number from {low} to {high}, not {value!r}")


def _real(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:  # NaN fails here
        raise InvalidRequest(f"sampling.{name}", f"must be a number from {low:g} to {high:g}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt of one client call, as workers see it.

    ``token_ids`` is the prompt and every token that earlier attempts already sent to the client, so a continuation
    needs nothing else; ``sampling.seed`` is set. ``age_s`` is the time since arrival when the value was made:
    receivers subtract it from their own clock.
    """

    request_id: str
    epoch: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling: SamplingParams
    goal: Goal
    priority: int = 0  # smaller goes first
    age_s: float = 0.0
    tenant_salt: str = ""

    @property
    def num_emitted(self) -> int:
        """Tokens generated before this attempt; the next token's index."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_new_tokens(self) -> int:
        """Tokens this attempt may still generate."""
        return self.sampling.max_tokens - self.num_emitted

    @property
    def peak_tokens(self) -> int:
        """Tokens whose KV exists at the very end; the last token sampled is never written."""
        return self.num_prompt_tokens + self.sampling.max_tokens - 1


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker's WorkerService listens. ``incarnation`` changes with every start of its process."""

    worker_id: str
    incarnation: str
    address: str


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """All that a worker's process needs to know to start; made by the launcher from the cluster YAML."""

    worker_id: str
    role: Role
    model: str  # absolute path of a Hugging Face directory, or dummy:<shape>, or modelled:<shape>
    max_model_len: int
    kv_bytes: int
    block_tokens: int
    dtype: str = "auto"
    prefix_cache: bool = True
    parked_share: float = 0.3
    chunk_tokens: int = 512  # prefill tokens one step may compute
    max_running: int = 256  # sequences one step may decode
    link: str = "auto"
    codec: str = "raw"
    digest: bool = True
    interface: str = "127.0.0.1"
    threads: int = 1
    cluster_secret: str = field(default="", repr=False)
