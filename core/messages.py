"""The vocabulary that workers, router and gateway share: frozen values, no behaviour beyond checking themselves.

Knows no transport, no tensor and no policy. Sampling parameters are in core/sampling.py.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from twinpool.core.errors import InvalidRequest
from twinpool.core.limits import Real
from twinpool.core.sampling import SamplingParams

MAX_GOAL_S = 86_400.0
_GOAL_S = Real(0, MAX_GOAL_S, is_open=True)


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
    UNANSWERABLE = "unanswerable"  # the model gives no token, as it would on any worker


@dataclass(frozen=True, slots=True)
class Goal:
    """Upper bounds a request should meet: seconds from arrival to first token, mean seconds between later tokens."""

    ttft_s: float
    tpot_s: float

    def check(self) -> None:
        """Raise InvalidRequest unless both are finite, positive and under a day."""
        for name in ("ttft_s", "tpot_s"):
            refusal = _GOAL_S.refusal(getattr(self, name))
            if refusal is not None:
                raise InvalidRequest(f"goal.{name}", refusal)


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
    choice: int = 0  # which of the n answers to one prompt: part of the noise's counter
    lossless_kv: bool = False  # none of its KV may have come through a lossy codec

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether this attempt has to score its prompt; they leave with the first token, so later attempts need not."""
        return self.sampling.prompt_logprobs is not None and self.num_emitted == 0

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
    cores: tuple[int, ...] = ()  # CPU cores that the worker's process is pinned to; none: wherever the system likes
    deterministic: bool = False
    quantization: str = "none"
    cluster_secret: str = field(default="", repr=False)
