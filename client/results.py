"""What a client returns: frozen values made from the gateway's messages.

Knows no transport. Field names are those of protos/twinpool/v1, which also says what each one means.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from google.protobuf.message import Message

from twinpool.core.errors import Internal
from twinpool.core.messages import FinishReason
from twinpool.protos.twinpool.v1 import cluster_pb2, generation_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the most probable tokens at some place, and the natural logarithm of its probability."""

    token_id: int
    logprob: float
    token: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable the model found a token, as a natural logarithm, and which tokens it found most probable.

    ``token`` are its bytes, which may be a part of a character; empty where the text does not show it.
    """

    token_id: int
    logprob: float
    token: bytes
    top: tuple[TopLogprob, ...] = ()  # best first


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """The tokens of one message; ``text`` holds whole characters only, so it may be empty or lag behind the ids.

    ``index`` is the position of the first id in the answer, and ``choice`` says in which of the n answers. ``logprobs``
    are as many as the ids, where asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


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
class Choice:
    """One whole answer, of the n that were asked for."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each token, where asked for


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All that came of a call. ``text``, ``token_ids``, ``finish_reason`` and ``logprobs`` are those of choice 0."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    request_id: str
    logprobs: tuple[TokenLogprob, ...] = ()
    choices: tuple[Choice, ...] = ()  # in order; choice 0 with them
    prompt_token_ids: tuple[int, ...] = ()  # with echo or prompt_logprobs
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of all prompt tokens but the first, where asked for


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the cluster serves."""

    id: str
    max_model_len: int
    vocab_size: int
    has_tokenizer: bool


@dataclass(frozen=True, slots=True)
class TransferMetrics:
    """What a worker's handoffs wait for now, and what came of them since it started. Waits count while they last."""

    parked_handoffs: int = 0  # as a source: all computed, and nothing of it moves
    parked_blocks: int = 0
    oldest_parked_s: float = 0.0
    grant_waits: int = 0  # as a source: handoffs that were computed before their target had room
    grant_wait_s: float = 0.0
    grant_cause: str = ""  # why the oldest one of now waits; empty: none does
    credit_waits: int = 0  # as a source: times that a group was ready and the target's window full
    credit_wait_s: float = 0.0
    room_waiting: int = 0  # as a target: handoffs that wait for blocks now
    oldest_lease_s: float = 0.0  # how long ago the peer that was silent for longest was heard
    link_reopenings: int = 0  # as a source
    digest_failures: int = 0  # as a target: groups that came damaged
    outgoing: Mapping[str, int] = field(default_factory=dict)  # as a source: handoffs that are over, by outcome
    incoming: Mapping[str, int] = field(default_factory=dict)  # as a target: likewise


@dataclass(frozen=True, slots=True)
class PairLink:
    """The link of a worker with one that it hands KV to; ``kind`` is empty where none will do."""

    target: str
    kind: str
    why: str
    is_open: bool


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
    transfer: TransferMetrics = field(default_factory=TransferMetrics)
    links: tuple[PairLink, ...] = ()  # as a source


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """One gateway's addresses; ``http`` is empty where it serves none."""

    grpc: str
    http: str
    pid: int


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """What became of a tenant's requests at one gateway since that knows of it."""

    name: str
    queued: int
    running: int
    admitted: int
    refused: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster as one of its gateways sees it."""

    name: str
    model: str
    queued_requests: int
    running_requests: int
    workers: tuple[WorkerStatus, ...]
    gateways: tuple[GatewayStatus, ...]
    tenants: tuple[TenantStatus, ...] = ()  # of that gateway; none where nobody is named or limited


def record_from_proto(kind: type[T], message: Message) -> T:
    """Return a dataclass whose fields are the equally named scalar fields of a message."""
    return kind(**{item.name: getattr(message, item.name) for item in fields(kind)})  # type: ignore[arg-type]


def logprobs_from_proto(messages: Iterable[generation_pb2.TokenLogprobs]) -> tuple[TokenLogprob, ...]:
    """Return the values of a response's logprobs; bytes stay empty where the gateway has no tokenizer.

    Raises:
        Internal: some token has not as many alternatives as logarithms of them.
    """
    return tuple([_logprob_from_proto(message) for message in messages])


def _logprob_from_proto(message: generation_pb2.TokenLogprobs) -> TokenLogprob:
    ids, logprobs = message.top_ids, message.top_logprobs
    tokens = list(message.top_tokens) or [b""] * len(ids)
    if not len(ids) == len(logprobs) == len(tokens):
        raise Internal(
            f"token {message.token_id} came with {len(ids)} alternatives and {len(logprobs)} logprobs of them"
        )
    top = tuple([TopLogprob(*row) for row in zip(ids, logprobs, tokens, strict=True)])
    return TokenLogprob(message.token_id, message.logprob, message.token, top)


def status_from_proto(message: cluster_pb2.GetStatusResponse) -> ClusterStatus:
    """Return the cluster's status."""
    return ClusterStatus(
        name=message.name,
        model=message.model,
        queued_requests=message.queued_requests,
        running_requests=message.running_requests,
        workers=tuple(_worker_from_proto(worker) for worker in message.workers),
        gateways=tuple(record_from_proto(GatewayStatus, gateway) for gateway in message.gateways),
        tenants=tuple(record_from_proto(TenantStatus, tenant) for tenant in message.tenants),
    )


def _worker_from_proto(message: cluster_pb2.WorkerStatus) -> WorkerStatus:
    transfer = record_from_proto(TransferMetrics, message.transfer)
    transfer = replace(transfer, outgoing=dict(transfer.outgoing), incoming=dict(transfer.incoming))
    links = tuple(record_from_proto(PairLink, link) for link in message.links)
    return replace(record_from_proto(WorkerStatus, message), transfer=transfer, links=links)
