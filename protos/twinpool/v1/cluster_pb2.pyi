from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("name", "workers", "gateways", "model", "queued_requests", "running_requests", "tenants")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    gateways: _containers.RepeatedCompositeFieldContainer[GatewayStatus]
    model: str
    queued_requests: int
    running_requests: int
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    def __init__(self, name: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., gateways: _Optional[_Iterable[_Union[GatewayStatus, _Mapping]]] = ..., model: _Optional[str] = ..., queued_requests: _Optional[int] = ..., running_requests: _Optional[int] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("id", "role", "pid", "node", "state", "free_blocks", "total_blocks", "running", "waiting", "parked_blocks", "cause", "link", "transfer", "links")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PARKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
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
    transfer: TransferMetrics
    links: _containers.RepeatedCompositeFieldContainer[PairLink]
    def __init__(self, id: _Optional[str] = ..., role: _Optional[str] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ..., state: _Optional[str] = ..., free_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., parked_blocks: _Optional[int] = ..., cause: _Optional[str] = ..., link: _Optional[str] = ..., transfer: _Optional[_Union[TransferMetrics, _Mapping]] = ..., links: _Optional[_Iterable[_Union[PairLink, _Mapping]]] = ...) -> None: ...

class PairLink(_message.Message):
    __slots__ = ("target", "kind", "why", "is_open")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    IS_OPEN_FIELD_NUMBER: _ClassVar[int]
    target: str
    kind: str
    why: str
    is_open: bool
    def __init__(self, target: _Optional[str] = ..., kind: _Optional[str] = ..., why: _Optional[str] = ..., is_open: _Optional[bool] = ...) -> None: ...

class PairLinks(_message.Message):
    __slots__ = ("links",)
    LINKS_FIELD_NUMBER: _ClassVar[int]
    links: _containers.RepeatedCompositeFieldContainer[PairLink]
    def __init__(self, links: _Optional[_Iterable[_Union[PairLink, _Mapping]]] = ...) -> None: ...

class TransferMetrics(_message.Message):
    __slots__ = ("parked_handoffs", "parked_blocks", "oldest_parked_s", "grant_waits", "grant_wait_s", "grant_cause", "credit_waits", "credit_wait_s", "room_waiting", "oldest_lease_s", "link_reopenings", "digest_failures", "outgoing", "incoming")
    class OutgoingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class IncomingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PARKED_HANDOFFS_FIELD_NUMBER: _ClassVar[int]
    PARKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PARKED_S_FIELD_NUMBER: _ClassVar[int]
    GRANT_WAITS_FIELD_NUMBER: _ClassVar[int]
    GRANT_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    GRANT_CAUSE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_WAITS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    ROOM_WAITING_FIELD_NUMBER: _ClassVar[int]
    OLDEST_LEASE_S_FIELD_NUMBER: _ClassVar[int]
    LINK_REOPENINGS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FAILURES_FIELD_NUMBER: _ClassVar[int]
    OUTGOING_FIELD_NUMBER: _ClassVar[int]
    INCOMING_FIELD_NUMBER: _ClassVar[int]
    parked_handoffs: int
    parked_blocks: int
    oldest_parked_s: float
    grant_waits: int
    grant_wait_s: float
    grant_cause: str
    credit_waits: int
    credit_wait_s: float
    room_waiting: int
    oldest_lease_s: float
    link_reopenings: int
    digest_failures: int
    outgoing: _containers.ScalarMap[str, int]
    incoming: _containers.ScalarMap[str, int]
    def __init__(self, parked_handoffs: _Optional[int] = ..., parked_blocks: _Optional[int] = ..., oldest_parked_s: _Optional[float] = ..., grant_waits: _Optional[int] = ..., grant_wait_s: _Optional[float] = ..., grant_cause: _Optional[str] = ..., credit_waits: _Optional[int] = ..., credit_wait_s: _Optional[float] = ..., room_waiting: _Optional[int] = ..., oldest_lease_s: _Optional[float] = ..., link_reopenings: _Optional[int] = ..., digest_failures: _Optional[int] = ..., outgoing: _Optional[_Mapping[str, int]] = ..., incoming: _Optional[_Mapping[str, int]] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("name", "queued", "running", "admitted", "refused", "prompt_tokens", "output_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    queued: int
    running: int
    admitted: int
    refused: int
    prompt_tokens: int
    output_tokens: int
    def __init__(self, name: _Optional[str] = ..., queued: _Optional[int] = ..., running: _Optional[int] = ..., admitted: _Optional[int] = ..., refused: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class GatewayStatus(_message.Message):
    __slots__ = ("grpc", "http", "pid")
    GRPC_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    grpc: str
    http: str
    pid: int
    def __init__(self, grpc: _Optional[str] = ..., http: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...
