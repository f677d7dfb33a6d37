"""The cluster YAML as frozen values: every key, its unit, its default and its limits.

Knows no file, no model and no worker; where a key stood in a file is core/spec_file.py's business.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from twinpool.core.spec_fields import (
    MAX_PORT,
    Bytes,
    IPAddress,
    Name,
    Port,
    PowerOfTwo,
    Problem,
    RayAddress,
    is_loopback,
    not_yet,
    refuse,
)
from twinpool.core.spec_pools import PoolsSpec
from twinpool.core.spec_requests import GoalSpec, RouterSpec, TenantSpec
from twinpool.core.spec_section import Section


class ModelSpec(Section):
    """The model that the cluster serves."""

    path: str = Field(min_length=1, max_length=4096)
    """Hugging Face directory, relative to this file; or dummy:SHAPE for random weights; or modelled:SHAPE."""
    max_model_len: int = Field(default=2048, ge=2, le=2**24)
    """Most tokens of one request, prompt and answer together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What weights and KV are kept in; auto is the checkpoint's own."""
    deterministic: bool = False
    """Arithmetic whose bits do not depend on what else is in the batch, nor on how a prompt was cut; slower."""
    quantization: Literal["none", "int8"] = "none"
    """int8 keeps a second copy of the weights, a byte each, for decode steps of few rows: faster, and less exact."""

    @model_validator(mode="after")
    def _one_arithmetic(self) -> Self:
        if self.deterministic and self.quantization != "none":
            what = f"{self.quantization} cannot be had with deterministic: true, as its bits depend on the batch"
            refuse([Problem(("quantization",), what)])
        return self


class KVSpec(Section):
    """The KV memory of each worker."""

    block_tokens: PowerOfTwo = Field(default=16, ge=8, le=256)
    """Tokens of one block: a power of two from 8 to 256."""
    memory: Bytes = 256 * 1024**2
    """Each worker's KV memory: 256MiB, 1GiB, or a number of bytes."""
    prefix_cache: bool = True
    """Keep the KV of past prompts for requests that begin alike, until room is needed."""
    parked_share: float = Field(default=0.3, gt=0, lt=1)
    """Most of a worker's KV that may wait for a decode worker with room."""


class BatchingSpec(Section):
    """How much one step of a worker may hold."""

    chunk_tokens: int = Field(default=512, ge=1, le=2**20)
    """Prompt tokens that one step may compute."""
    max_running: int = Field(default=256, ge=1, le=2**16)
    """Sequences that one step may decode."""


class TransferSpec(Section):
    """How KV moves between workers."""

    link: Annotated[Literal["auto", "gloo", "shm", "nccl", "cuda_ipc"], not_yet("memory", "nixl")] = "auto"
    """The transport between each two workers; auto takes the fastest that both can use, and gloo otherwise."""
    codec: Literal["raw", "int8", "fp8", "int4", "int2", "auto"] = "raw"
    """How KV is coded on the link: all but raw lose some of it; auto codes where the link is what requests wait for."""
    digest: bool = True
    """Check every group of KV bytes on arrival."""
    interface: IPAddress = "127.0.0.1"
    """IP address that links listen on. They are not authenticated: it must belong to a private network."""

    @model_validator(mode="after")
    def _can_code(self) -> Self:
        if self.link in ("shm", "cuda_ipc") and self.codec not in ("raw", "auto"):
            what = f"{self.codec} cannot go with link: {self.link}, which copies KV as it is; use raw, or link: gloo"
            refuse([Problem(("codec",), what)])
        return self


class GatewaySpec(Section):
    """Where clients connect."""

    host: str = Field(default="127.0.0.1", pattern=r"^[A-Za-z0-9.:_-]{1,253}$")
    """Address to listen on."""
    grpc_port: Port = 7070
    """Port of the gRPC service; 0 takes a free one. More replicas count up from here."""
    http_port: Port = 8080
    """Port of the HTTP service, which this version does not serve yet; 0 takes a free one."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Gateway processes."""
    request_log: str = Field(default="", max_length=4096)
    """File that gets a line for each request, without its text; relative to this one. Several replicas: one each."""
    insecure_no_auth: bool = False
    """Listen beyond this machine although nobody is authenticated."""

    @model_validator(mode="after")
    def _can_listen(self) -> Self:
        problems = []
        if not self.insecure_no_auth and not is_loopback(self.host):
            what = f"{self.host!r} is reachable from other machines and clients are not authenticated; "
            problems.append(Problem(("host",), what + "set gateway.insecure_no_auth: true to allow it"))
        for name, port in (("grpc_port", self.grpc_port), ("http_port", self.http_port)):
            if port + self.replicas - 1 > MAX_PORT:
                problems.append(Problem((name,), f"{self.replicas} replicas from {port} on pass port {MAX_PORT}"))
        if self.grpc_port and self.http_port and abs(self.grpc_port - self.http_port) < self.replicas:
            problems.append(Problem(("http_port",), f"{self.http_port} is taken by grpc_port {self.grpc_port}"))
        refuse(problems)
        return self


class RaySpec(Section):
    """The Ray cluster that places and supervises the workers."""

    address: RayAddress = "local"
    """local starts one for this cluster; auto or HOST:PORT attaches to one that runs."""
    object_store: Bytes = Field(default=128 * 1024**2, ge=75 * 1024**2)
    """Size of the object store of a local Ray, at least 75MiB. Tokens and KV never pass through it."""


class ClusterSpec(Section):
    """A Twinpool cluster."""

    name: Name
    """Lower-case letters, digits and hyphens, 40 at most; `twinpool status NAME` finds the cluster by it."""
    model: ModelSpec
    pools: PoolsSpec
    kv: KVSpec = KVSpec()
    batching: BatchingSpec = BatchingSpec()
    transfer: TransferSpec = TransferSpec()
    router: RouterSpec = RouterSpec()
    goals: dict[Name, GoalSpec] = Field(default_factory=dict, validate_default=True)
    """Goals by class of request; `default` holds for requests that name none."""
    tenants: dict[Name, TenantSpec] = Field(default_factory=dict)
    """Limits by tenant; `default` holds for requests that name none, and for each tenant that is not named here."""
    gateway: GatewaySpec = GatewaySpec()
    ray: RaySpec = RaySpec()

    @field_validator("transfer")
    @classmethod
    def _keeps_bits(cls, transfer: TransferSpec, info: ValidationInfo) -> TransferSpec:
        model = info.data.get("model")  # absent when it has problems of its own
        if model is not None and model.deterministic and transfer.codec != "raw":
            what = f"{transfer.codec} cannot be had with model.deterministic: true, as coded KV loses bits"
            refuse([Problem(("codec",), what)])
        return transfer

    @field_validator("router")
    @classmethod
    def _two_sides(cls, router: RouterSpec, info: ValidationInfo) -> RouterSpec:
        pools = info.data.get("pools")  # absent when it has problems of its own
        if (
            pools is not None
            and router.disaggregate == "always"
            and not (pools.prefill.workers and pools.decode.workers)
        ):
            what = "always needs at least one worker in pools.prefill and one in pools.decode"
            refuse([Problem(("disaggregate",), what)])
        return router

    @field_validator("goals")
    @classmethod
    def _with_default(cls, goals: dict[str, GoalSpec]) -> dict[str, GoalSpec]:
        return {"default": GoalSpec(ttft_s=1.0, tpot_s=0.05)} | goals


def check_against_model(spec: ClusterSpec, *, kv_token_bytes: int, max_position_embeddings: int) -> tuple[Problem, ...]:
    """What the cluster asks of its model that it cannot have.

    ``kv_token_bytes`` is one token's KV over all layers of one worker. A worker must hold one request of
    ``max_model_len`` tokens, or that request would wait for ever.
    """
    problems = []
    if spec.model.max_model_len > max_position_embeddings:
        what = f"{spec.model.max_model_len} is over the model's max_position_embeddings, {max_position_embeddings}"
        problems.append(Problem(("model", "max_model_len"), what))
    block_bytes = spec.kv.block_tokens * kv_token_bytes
    needed = -(-spec.model.max_model_len // spec.kv.block_tokens) * block_bytes
    if spec.kv.memory < needed:
        what = (
            f"{spec.kv.memory} bytes hold {spec.kv.memory // block_bytes * spec.kv.block_tokens} tokens of this model, "
            f"not one request of max_model_len {spec.model.max_model_len}; that takes {math.ceil(needed / 2**20)}MiB"
        )
        problems.append(Problem(("kv", "memory"), what))
    return tuple(problems)


def cluster_schema() -> dict[str, Any]:
    """The JSON Schema of the cluster YAML, for editors; cross-field rules are not in it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | ClusterSpec.model_json_schema()
