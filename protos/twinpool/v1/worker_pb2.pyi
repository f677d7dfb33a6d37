from twinpool.protos.twinpool.v1 import cluster_pb2 as _cluster_pb2
from twinpool.protos.twinpool.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FailureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_KIND_UNSPECIFIED: _ClassVar[FailureKind]
    FAILURE_KIND_TRANSFER_FAILED: _ClassVar[FailureKind]
    FAILURE_KIND_PREEMPTED: _ClassVar[FailureKind]
    FAILURE_KIND_CORRUPTED: _ClassVar[FailureKind]
    FAILURE_KIND_INTERNAL: _ClassVar[FailureKind]
    FAILURE_KIND_PEER_LOST: _ClassVar[FailureKind]
    FAILURE_KIND_UNANSWERABLE: _ClassVar[FailureKind]
FAILURE_KIND_UNSPECIFIED: FailureKind
FAILURE_KIND_TRANSFER_FAILED: FailureKind
FAILURE_KIND_PREEMPTED: FailureKind
FAILURE_KIND_CORRUPTED: FailureKind
FAILURE_KIND_INTERNAL: FailureKind
FAILURE_KIND_PEER_LOST: FailureKind
FAILURE_KIND_UNANSWERABLE: FailureKind

class GatewayMessage(_message.Message):
    __slots__ = ("hello", "prefill", "reserve", "cancel", "list_cache")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    LIST_CACHE_FIELD_NUMBER: _ClassVar[int]
    hello: AttachHello
    prefill: PrefillOrder
    reserve: ReserveOrder
    cancel: CancelOrder
    list_cache: CacheListOrder
    def __init__(self, hello: _Optional[_Union[AttachHello, _Mapping]] = ..., prefill: _Optional[_Union[PrefillOrder, _Mapping]] = ..., reserve: _Optional[_Union[ReserveOrder, _Mapping]] = ..., cancel: _Optional[_Union[CancelOrder, _Mapping]] = ..., list_cache: _Optional[_Union[CacheListOrder, _Mapping]] = ...) -> None: ...

class AttachHello(_message.Message):
    __slots__ = ("gateway_id",)
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    def __init__(self, gateway_id: _Optional[str] = ...) -> None: ...

class RequestSpec(_message.Message):
    __slots__ = ("request_id", "epoch", "token_ids", "num_prompt_tokens", "sampling", "goal", "priority", "age_s", "tenant_salt", "choice", "lossless_kv")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    TENANT_SALT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    LOSSLESS_KV_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_prompt_tokens: int
    sampling: _generation_pb2.SamplingParams
    goal: _generation_pb2.Goal
    priority: int
    age_s: float
    tenant_salt: str
    choice: int
    lossless_kv: bool
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingParams, _Mapping]] = ..., goal: _Optional[_Union[_generation_pb2.Goal, _Mapping]] = ..., priority: _Optional[int] = ..., age_s: _Optional[float] = ..., tenant_salt: _Optional[str] = ..., choice: _Optional[int] = ..., lossless_kv: _Optional[bool] = ...) -> None: ...

class PrefillOrder(_message.Message):
    __slots__ = ("request", "target", "expects_parked")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EXPECTS_PARKED_FIELD_NUMBER: _ClassVar[int]
    request: RequestSpec
    target: WorkerAddress
    expects_parked: bool
    def __init__(self, request: _Optional[_Union[RequestSpec, _Mapping]] = ..., target: _Optional[_Union[WorkerAddress, _Mapping]] = ..., expects_parked: _Optional[bool] = ...) -> None: ...

class WorkerAddress(_message.Message):
    __slots__ = ("worker_id", "incarnation", "address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    address: str
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class ReserveOrder(_message.Message):
    __slots__ = ("request", "source")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    request: RequestSpec
    source: WorkerAddress
    def __init__(self, request: _Optional[_Union[RequestSpec, _Mapping]] = ..., source: _Optional[_Union[WorkerAddress, _Mapping]] = ...) -> None: ...

class CancelOrder(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CacheListOrder(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "step")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    step: StepOutput
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., step: _Optional[_Union[StepOutput, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("address", "role", "pid", "node", "total_blocks", "block_tokens", "link", "model", "kv_dtype", "kv_qualities")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KV_DTYPE_FIELD_NUMBER: _ClassVar[int]
    KV_QUALITIES_FIELD_NUMBER: _ClassVar[int]
    address: WorkerAddress
    role: str
    pid: int
    node: str
    total_blocks: int
    block_tokens: int
    link: str
    model: str
    kv_dtype: str
    kv_qualities: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, address: _Optional[_Union[WorkerAddress, _Mapping]] = ..., role: _Optional[str] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ..., total_blocks: _Optional[int] = ..., block_tokens: _Optional[int] = ..., link: _Optional[str] = ..., model: _Optional[str] = ..., kv_dtype: _Optional[str] = ..., kv_qualities: _Optional[_Iterable[str]] = ...) -> None: ...

class StepOutput(_message.Message):
    __slots__ = ("deltas", "failures", "view", "cache", "links")
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    deltas: _containers.RepeatedCompositeFieldContainer[Delta]
    failures: _containers.RepeatedCompositeFieldContainer[Failure]
    view: WorkerView
    cache: CacheEvents
    links: _cluster_pb2.PairLinks
    def __init__(self, deltas: _Optional[_Iterable[_Union[Delta, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[Failure, _Mapping]]] = ..., view: _Optional[_Union[WorkerView, _Mapping]] = ..., cache: _Optional[_Union[CacheEvents, _Mapping]] = ..., links: _Optional[_Union[_cluster_pb2.PairLinks, _Mapping]] = ...) -> None: ...

class CacheEvents(_message.Message):
    __slots__ = ("sequence", "cleared", "stored", "removed")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    cleared: bool
    stored: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence: _Optional[int] = ..., cleared: _Optional[bool] = ..., stored: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("request_id", "epoch", "index", "token_ids", "finish_reason", "prefill", "handoff", "logprobs", "prompt_logprobs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: _generation_pb2.FinishReason
    prefill: PrefillTiming
    handoff: HandoffTiming
    logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.TokenLogprobs]
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[_generation_pb2.FinishReason, str]] = ..., prefill: _Optional[_Union[PrefillTiming, _Mapping]] = ..., handoff: _Optional[_Union[HandoffTiming, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[_generation_pb2.TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_generation_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...

class PrefillTiming(_message.Message):
    __slots__ = ("queue_s", "prefill_s", "cached_tokens")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    prefill_s: float
    cached_tokens: int
    def __init__(self, queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class HandoffTiming(_message.Message):
    __slots__ = ("handoff_s", "wire_s", "exposed_s", "kv_bytes")
    HANDOFF_S_FIELD_NUMBER: _ClassVar[int]
    WIRE_S_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_S_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    handoff_s: float
    wire_s: float
    exposed_s: float
    kv_bytes: int
    def __init__(self, handoff_s: _Optional[float] = ..., wire_s: _Optional[float] = ..., exposed_s: _Optional[float] = ..., kv_bytes: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("request_id", "epoch", "kind", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    kind: FailureKind
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., kind: _Optional[_Union[FailureKind, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class WorkerView(_message.Message):
    __slots__ = ("version", "free_blocks", "running", "context_tokens", "waiting_prefills", "waiting_prefill_tokens", "reservations", "reserved_blocks", "parked_blocks", "peak_blocks", "cause", "preempted", "transfer")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WAITING_PREFILLS_FIELD_NUMBER: _ClassVar[int]
    WAITING_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESERVATIONS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PARKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    version: int
    free_blocks: int
    running: int
    context_tokens: int
    waiting_prefills: int
    waiting_prefill_tokens: int
    reservations: int
    reserved_blocks: int
    parked_blocks: int
    peak_blocks: int
    cause: str
    preempted: int
    transfer: _cluster_pb2.TransferMetrics
    def __init__(self, version: _Optional[int] = ..., free_blocks: _Optional[int] = ..., running: _Optional[int] = ..., context_tokens: _Optional[int] = ..., waiting_prefills: _Optional[int] = ..., waiting_prefill_tokens: _Optional[int] = ..., reservations: _Optional[int] = ..., reserved_blocks: _Optional[int] = ..., parked_blocks: _Optional[int] = ..., peak_blocks: _Optional[int] = ..., cause: _Optional[str] = ..., preempted: _Optional[int] = ..., transfer: _Optional[_Union[_cluster_pb2.TransferMetrics, _Mapping]] = ...) -> None: ...

class PeerMessage(_message.Message):
    __slots__ = ("hello", "open_link", "link_ready", "link_closed", "started", "grant", "next", "seal", "committed", "abort", "stopped", "heartbeat", "link_unused")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_LINK_FIELD_NUMBER: _ClassVar[int]
    LINK_READY_FIELD_NUMBER: _ClassVar[int]
    LINK_CLOSED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LINK_UNUSED_FIELD_NUMBER: _ClassVar[int]
    hello: PairHello
    open_link: OpenLink
    link_ready: LinkReady
    link_closed: LinkClosed
    started: Started
    grant: Grant
    next: Next
    seal: Seal
    committed: Committed
    abort: Abort
    stopped: Stopped
    heartbeat: Heartbeat
    link_unused: LinkUnused
    def __init__(self, hello: _Optional[_Union[PairHello, _Mapping]] = ..., open_link: _Optional[_Union[OpenLink, _Mapping]] = ..., link_ready: _Optional[_Union[LinkReady, _Mapping]] = ..., link_closed: _Optional[_Union[LinkClosed, _Mapping]] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., next: _Optional[_Union[Next, _Mapping]] = ..., seal: _Optional[_Union[Seal, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., stopped: _Optional[_Union[Stopped, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., link_unused: _Optional[_Union[LinkUnused, _Mapping]] = ...) -> None: ...

class PairHello(_message.Message):
    __slots__ = ("address", "layout_hash", "layout", "link_kinds", "host", "device", "chunk_bytes", "protocol_version")
    class ChunkBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_HASH_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LINK_KINDS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    address: WorkerAddress
    layout_hash: str
    layout: str
    link_kinds: _containers.RepeatedScalarFieldContainer[str]
    host: str
    device: str
    chunk_bytes: _containers.ScalarMap[str, int]
    protocol_version: int
    def __init__(self, address: _Optional[_Union[WorkerAddress, _Mapping]] = ..., layout_hash: _Optional[str] = ..., layout: _Optional[str] = ..., link_kinds: _Optional[_Iterable[str]] = ..., host: _Optional[str] = ..., device: _Optional[str] = ..., chunk_bytes: _Optional[_Mapping[str, int]] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class OpenLink(_message.Message):
    __slots__ = ("link_epoch", "kind")
    LINK_EPOCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    link_epoch: int
    kind: str
    def __init__(self, link_epoch: _Optional[int] = ..., kind: _Optional[str] = ...) -> None: ...

class LinkReady(_message.Message):
    __slots__ = ("link_epoch", "host", "port", "ticket", "refusal")
    LINK_EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    link_epoch: int
    host: str
    port: int
    ticket: bytes
    refusal: str
    def __init__(self, link_epoch: _Optional[int] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., ticket: _Optional[bytes] = ..., refusal: _Optional[str] = ...) -> None: ...

class LinkClosed(_message.Message):
    __slots__ = ("link_epoch", "reason")
    LINK_EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    link_epoch: int
    reason: str
    def __init__(self, link_epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class LinkUnused(_message.Message):
    __slots__ = ("link_epoch",)
    LINK_EPOCH_FIELD_NUMBER: _ClassVar[int]
    link_epoch: int
    def __init__(self, link_epoch: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "epoch", "num_tokens", "codec")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    num_tokens: int
    codec: str
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., num_tokens: _Optional[int] = ..., codec: _Optional[str] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("request_id", "epoch", "skip_blocks", "window")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SKIP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    skip_blocks: int
    window: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., skip_blocks: _Optional[int] = ..., window: _Optional[int] = ...) -> None: ...

class Next(_message.Message):
    __slots__ = ("request_id", "epoch", "seq", "first_layer", "end_layer", "first_block", "end_block", "codec", "num_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    END_BLOCK_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    seq: int
    first_layer: int
    end_layer: int
    first_block: int
    end_block: int
    codec: str
    num_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., first_block: _Optional[int] = ..., end_block: _Optional[int] = ..., codec: _Optional[str] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class Seal(_message.Message):
    __slots__ = ("request_id", "epoch", "num_tokens", "num_groups", "first_token", "since_computed_s", "wire_s", "exposed_s", "kv_bytes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SINCE_COMPUTED_S_FIELD_NUMBER: _ClassVar[int]
    WIRE_S_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_S_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    num_tokens: int
    num_groups: int
    first_token: int
    since_computed_s: float
    wire_s: float
    exposed_s: float
    kv_bytes: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_groups: _Optional[int] = ..., first_token: _Optional[int] = ..., since_computed_s: _Optional[float] = ..., wire_s: _Optional[float] = ..., exposed_s: _Optional[float] = ..., kv_bytes: _Optional[int] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("request_id", "epoch")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("request_id", "epoch", "reason", "corrupted")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CORRUPTED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    reason: str
    corrupted: bool
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ..., corrupted: _Optional[bool] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ("request_id", "epoch")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
