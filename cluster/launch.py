"""From a cluster YAML to what each process is told when it starts.

Knows the shape of a cluster, not Ray: the controller performs a LaunchPlan.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from twinpool.cluster.affinity import missing_cores, usable_cores
from twinpool.cluster.estimates import read_estimates
from twinpool.cluster.free_memory import available_bytes, mib
from twinpool.cluster.request_log import path_of_replica
from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal, Role, WorkerConfig
from twinpool.core.spec import ClusterSpec, check_against_model
from twinpool.core.spec_fields import Problem, parse_cores
from twinpool.core.spec_file import SpecFile, read_cluster
from twinpool.kv_transfer.codec_policy import possible_codecs
from twinpool.model.shape import ModelShape, load_shape
from twinpool.router.estimate import LatencyModel
from twinpool.router.first_estimate import kinds_by_role
from twinpool.router.settings import tenant_limits
from twinpool.router.standing import OnMiss, Standing
from twinpool.router.tenants import TenantLimits


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All that a gateway's process needs to know to start."""

    gateway_id: str
    cluster: str
    host: str
    grpc_port: int
    model: str
    model_id: str
    max_model_len: int
    dtype: str
    goals: dict[str, Goal]
    priorities: dict[str, int]
    policy: str
    disaggregate: str
    on_prefill_loss: str
    max_queued: int
    max_attempts: int
    chunk_tokens: int
    cluster_secret: str = field(repr=False)
    request_log: str = ""  # absolute path of a file; empty: none
    standings: Mapping[str, Standing] = field(default_factory=dict)  # by goal class; that of those missing is usual
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)
    aging_s: float = 30.0
    kinds: Mapping[Role, str] = field(default_factory=dict)  # of the workers of each role
    latencies: Mapping[str, LatencyModel] = field(default_factory=dict)  # by kind, as far as anything is known


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Every process of a cluster, and where its Ray is."""

    name: str
    workers: tuple[WorkerConfig, ...]
    gateways: tuple[GatewayConfig, ...]
    ray_address: str
    object_store_bytes: int


def plan_launch(spec_path: Path) -> LaunchPlan:
    """Say which processes make the cluster up.

    Raises:
        SpecError: the YAML is wrong, or the model cannot be read or does not fit what the YAML says.
    """
    file = read_cluster(spec_path)
    spec = file.spec
    shape = _shape_of(file)
    file.refuse(
        check_against_model(
            spec, kv_token_bytes=shape.kv_token_bytes, max_position_embeddings=shape.max_position_embeddings
        )
    )
    file.refuse(_check_codec(spec, shape))
    if spec.ray.address == "local":
        file.refuse(_check_memory(spec, shape.weight_bytes, available_bytes()))
        file.refuse(_check_cores(spec, usable_cores()))
    secret = secrets.token_hex(16)
    workers = tuple(_worker_configs(spec, secret))
    file.refuse(_check_threads(spec, workers))
    latencies = read_estimates(file, shape)
    return LaunchPlan(
        name=spec.name,
        workers=workers,
        gateways=tuple(
            replace(_gateway_config(spec, index, secret, spec_path.absolute().parent), latencies=latencies)
            for index in range(spec.gateway.replicas)
        ),
        ray_address=spec.ray.address,
        object_store_bytes=spec.ray.object_store,
    )


def _shape_of(file: SpecFile) -> ModelShape:
    """The model's shape; what is wrong with the model is told with the line that names it."""
    try:
        return load_shape(file.spec.model.path, file.spec.model.dtype, file.spec.model.quantization)
    except SpecError as error:
        file.refuse([Problem(("model", "path"), str(error))])
        raise


def _check_codec(spec: ClusterSpec, shape: ModelShape) -> tuple[Problem, ...]:
    """Not every model's KV can be coded."""
    try:
        possible_codecs(spec.transfer.codec, replace(shape.kv_layout, block_tokens=spec.kv.block_tokens))
    except ValueError as error:
        return (Problem(("transfer", "codec"), str(error).removeprefix("transfer.codec: ")),)
    return ()


def _check_memory(spec: ClusterSpec, weight_bytes: int, available_bytes: int) -> tuple[Problem, ...]:
    """All workers of a local Ray share this machine's memory."""
    num_workers = sum(pool.workers for pool in spec.pools.by_role().values())
    needed = num_workers * (weight_bytes + spec.kv.memory) + spec.ray.object_store
    if needed <= available_bytes:
        return ()
    what = (
        f"{num_workers} workers with {mib(weight_bytes)} of weights and {mib(spec.kv.memory)} of KV each, and Ray's "
        f"object store of {mib(spec.ray.object_store)}, need {mib(needed)}; this machine has "
        f"{mib(available_bytes)} free"
    )
    return (Problem(("kv", "memory"), what),)


def _check_cores(spec: ClusterSpec, usable: frozenset[int]) -> tuple[Problem, ...]:
    """All workers of a local Ray run on this machine's cores, and each of those has one pool."""
    problems, owners = [], dict[int, str]()
    for role, pool in spec.pools.by_role().items():
        cores = parse_cores(pool.cores)
        told = missing_cores(cores, usable)
        if shared := [core for core in cores if core in owners]:
            told = told or f"core {shared[0]} is {owners[shared[0]]}'s; a core belongs to one pool"
        owners |= dict.fromkeys(cores, f"pools.{role}")
        if told:
            problems.append(Problem(("pools", str(role), "cores"), told))
    return tuple(problems)


def _check_threads(spec: ClusterSpec, workers: tuple[WorkerConfig, ...]) -> tuple[Problem, ...]:
    """Bits are equal on any worker only where all compute with as many threads."""
    counts = sorted({worker.threads for worker in workers})
    if not spec.model.deterministic or len(counts) == 1:
        return ()
    what = f"needs the same threads on every worker, not {' and '.join(map(str, counts))}; set pools.ROLE.threads"
    return (Problem(("model", "deterministic"), what),)


def _worker_configs(spec: ClusterSpec, secret: str) -> Iterator[WorkerConfig]:
    num_workers = sum(pool.workers for pool in spec.pools.by_role().values())
    shared_threads = max(1, (os.cpu_count() or 1) // num_workers)
    for role, pool in spec.pools.by_role().items():
        for index in range(pool.workers):
            cores = pool.cores_of(index)
            yield WorkerConfig(
                worker_id=f"{role}-{index}",
                role=role,
                model=spec.model.path,
                max_model_len=spec.model.max_model_len,
                kv_bytes=spec.kv.memory,
                block_tokens=spec.kv.block_tokens,
                dtype=spec.model.dtype,
                prefix_cache=spec.kv.prefix_cache,
                parked_share=spec.kv.parked_share,
                chunk_tokens=spec.batching.chunk_tokens,
                max_running=spec.batching.max_running,
                link=spec.transfer.link,
                codec=spec.transfer.codec,
                digest=spec.transfer.digest,
                interface=spec.transfer.interface,
                threads=(len(cores) or shared_threads) if pool.threads == "auto" else pool.threads,
                cores=cores,
                deterministic=spec.model.deterministic,
                quantization=spec.model.quantization,
                cluster_secret=secret,
            )


def _gateway_config(spec: ClusterSpec, index: int, secret: str, folder: Path) -> GatewayConfig:
    first_port = spec.gateway.grpc_port
    return GatewayConfig(
        gateway_id=f"gateway-{index}",
        cluster=spec.name,
        host=spec.gateway.host,
        grpc_port=first_port + index if first_port else 0,
        model=spec.model.path,
        model_id=Path(spec.model.path).name,
        max_model_len=spec.model.max_model_len,
        dtype=spec.model.dtype,
        goals={name: goal.goal for name, goal in spec.goals.items()},
        priorities={name: goal.priority_rank for name, goal in spec.goals.items()},
        policy=spec.router.policy,
        disaggregate=spec.router.disaggregate,
        on_prefill_loss=spec.router.on_prefill_loss,
        max_queued=spec.router.max_queued,
        max_attempts=spec.router.max_attempts,
        chunk_tokens=spec.batching.chunk_tokens,
        cluster_secret=secret,
        standings={
            name: Standing(on_miss=OnMiss(goal.on_miss), deadline_s=goal.deadline_s or float("inf"))
            for name, goal in spec.goals.items()
        },
        tenants=tenant_limits(spec.tenants),
        aging_s=spec.router.aging_s,
        request_log=path_of_replica(spec.gateway.request_log, folder, index, spec.gateway.replicas),
        kinds=kinds_by_role(spec),
    )
