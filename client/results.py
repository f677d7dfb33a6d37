"""What a client returns: frozen values made from the gateway's messages.

Knows no transport. Field names are those of protos/twinpool/v1, which also says what each one means.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

from google.protobuf.message import Message

from twinpool.core.messages import FinishReason
from twinpool.protos.twinpool.v1 import cluster_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """The tokens of one message; ``text`` holds whole characters only, so it may be empty or lag behind the ids.

    ``index`` is the position of the first id in the answer.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request ran and where its time went, in seconds as its gateway and workers measured them."""

    prefill_worker: str
    decode_worker: str
    queue_s: float
    prefill_s: float
    handoff_s: float
    wire_s: float
    exposed_s: float
    kv_bytes: int
    ttft_s: float
    tpot_s: float
    attempts: int
    placement: str


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    request_id: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the cluster serves."""

    id: str
    max_model_len: int
    vocab_size: int
    has_tokenizer: bool


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as the gateway last heard of it."""

    id: str
    role: str
    pid: int
    node: str
    state: str
    free_blocks: int
    total_blocks: int
    running: int
    waiting: int
    parked_blocks: int
    cause: str
    link: str


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """One gateway's addresses; ``http`` is empty where it serves none."""

    grpc: str
    http: str
    pid: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster as one of its gateways sees it."""

    name: str
    model: str
    queued_requests: int
    running_requests: int
    workers: tuple[WorkerStatus, ...]
    gateways: tuple[GatewayStatus, ...]


def record_from_proto(kind: type[T], message: Message) -> T:
    """Return a dataclass whose fields are the equally named scalar fields of a message."""
    return kind(**{item.name: getattr(message, item.name) for item in fields(kind)})  # type: ignore[arg-type]


def status_from_proto(message: cluster_pb2.GetStatusResponse) -> ClusterStatus:
    """Return the cluster's status."""
    return ClusterStatus(
        name=message.name,
        model=message.model,
        queued_requests=message.queued_requests,
        running_requests=message.running_requests,
        workers=tuple(record_from_proto(WorkerStatus, worker) for worker in message.workers),
        gateways=tuple(record_from_proto(GatewayStatus, gateway) for gateway in message.gateways),
    )
