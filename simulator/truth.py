"""Finds out how fast simulated workers are, how much KV they hold, and what they draw and cost.

Knows where such numbers come from and which source goes before which; makes no worker and no prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from twinpool.core.errors import SpecError
from twinpool.core.limits import shown
from twinpool.core.messages import Role
from twinpool.core.spec import ClusterSpec
from twinpool.model.modelled_shape import modelled_shape
from twinpool.model.shape import ModelShape
from twinpool.router.estimate import LatencyModel, LinearForm, LinkCost, StepForm
from twinpool.router.hardware import GPUS, Gpu, power_form
from twinpool.router.latency_profile import LatencyProfile, kind_name
from twinpool.router.roofline import ModelSize, kv_capacity_tokens
from twinpool.simulator.scenario import WorkerKind

AUTO = "auto"
UNMEASURED_LINK = LinkCost(latency_s=1e-3, bytes_per_s=5e9)  # taken for one of which nothing is known
MAX_LAYER_GROUPS = 8


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known of a cluster's workers; the first that says how long steps take goes."""

    shape: ModelShape
    profile: LatencyProfile | None = None  # measured
    table: StepForm | None = None  # of all workers
    size: ModelSize | None = None  # of a model that a GPU would compute; None: a modelled one
    estimates: Mapping[str, LatencyModel] | None = None  # by kind: what the router starts from
    kv_memory: int | str | None = None  # bytes of each worker, or AUTO; None: the YAML's


def find_gpu(name: str, where: str) -> Gpu:
    """A GPU by its name, or by the begin of it: ``h100``.

    Raises:
        SpecError: there is none of that name, or several; ``where`` names the key or option.
    """
    found = [gpu for gpu in GPUS.values() if gpu.name.lower() == name.lower()]
    found = found or [gpu for gpu in GPUS.values() if gpu.name.lower().startswith(name.lower())]
    if len(found) != 1 or not name:
        raise SpecError(f"{where}: {shown(name)} does not name one GPU; known: {', '.join(GPUS)}")
    return found[0]


def make_kind(spec: ClusterSpec, role: Role, sources: Sources) -> WorkerKind:
    """The kind of one pool's workers.

    Raises:
        SpecError: nothing says how fast these workers are, or their model does not fit them.
    """
    pool, shape = spec.pools.by_role()[role], sources.shape
    name = kind_name(role, pool.tensor_parallel, pool.pipeline_parallel)
    gpus = pool.tensor_parallel * pool.pipeline_parallel
    gpu = None if pool.hardware is None else GPUS[pool.hardware]
    link = _link(sources, name, gpu, gpus)
    measured = None if sources.profile is None else sources.profile.of_kind(name)
    return WorkerKind(
        name=name,
        truth=_steps(spec, role, name, sources),
        kv_token_bytes=shape.kv_token_bytes,
        num_blocks=_num_blocks(spec, role, gpu, sources),
        block_tokens=spec.kv.block_tokens,
        gpus=gpus,
        nic_bytes_per_s=link.bytes_per_s,
        link_latency_s=link.latency_s,
        layer_groups=max(1, min(MAX_LAYER_GROUPS, shape.kv_layout.num_layers)),
        send_s=0.0 if measured is None else measured.send_s,
        join_s=0.0 if measured is None else measured.join_s,
        power=None if gpu is None else power_form(gpu, gpus),
        price_per_hour=gpus * gpu.price_per_hour if gpu is not None and gpu.price_per_hour is not None else 0.0,
    )


def _steps(spec: ClusterSpec, role: Role, name: str, sources: Sources) -> StepForm:
    measured = None if sources.profile is None else sources.profile.of_kind(name)
    if measured is not None:
        return measured.steps.steps()
    if sources.table is not None:
        return sources.table
    if sources.size is None:
        return _modelled_steps(spec.model.path)
    estimate = (sources.estimates or {}).get(name)
    if estimate is not None:
        return estimate.steps
    if sources.profile is not None:
        kinds = ", ".join(sorted(sources.profile.kinds))
        raise SpecError(f"pools.{role}: the profile has nothing about {name} workers; it has {kinds}")
    raise SpecError(
        f"pools.{role}.hardware: say which GPU here or with --hardware, or give --latency FILE; "
        f"known: {', '.join(GPUS)}"
    )


def _modelled_steps(path: str) -> LinearForm:
    latency = modelled_shape(path).latency
    return LinearForm(
        latency.prefill_a_s,
        latency.prefill_b_s,
        latency.prefill_c_s,
        latency.decode_alpha_s,
        latency.decode_beta_s,
        latency.decode_gamma_s,
    )


def _link(sources: Sources, name: str, gpu: Gpu | None, gpus: int) -> LinkCost:
    """What a handoff takes that has the network card to itself."""
    measured = None if sources.profile is None else sources.profile.of_kind(name)
    if measured is not None:
        return measured.link.cost()
    if gpu is not None and gpu.nic_bytes_per_s is not None:
        return replace(UNMEASURED_LINK, bytes_per_s=gpus * gpu.nic_bytes_per_s)
    return UNMEASURED_LINK


def _num_blocks(spec: ClusterSpec, role: Role, gpu: Gpu | None, sources: Sources) -> int:
    """Blocks that a worker's KV memory holds, once it is seen that its GPUs have so much."""
    where = "kv.memory" if sources.kv_memory is None else "--kv-memory"
    room = None if gpu is None or sources.size is None else _room_tokens(spec, role, gpu, sources.size)
    if sources.kv_memory == AUTO:
        if room is None:
            told = f"{AUTO} needs a model with weights, and a GPU"
            raise SpecError(f"{where}: {told}: pools.{role}.hardware or --hardware")
        tokens = room
    else:
        memory = spec.kv.memory if sources.kv_memory is None else int(sources.kv_memory)
        tokens = memory // sources.shape.kv_token_bytes
    if room is not None and tokens > room:
        told = f"beside the model {_told_gpus(spec, role, gpu)} have room for {room:,} tokens of KV"
        raise SpecError(f"{where}: {told}, not for {tokens:,}; --kv-memory {AUTO} takes what there is")
    if tokens < spec.kv.block_tokens:
        raise SpecError(f"{where}: has no room for one block of {spec.kv.block_tokens} tokens")
    return tokens // spec.kv.block_tokens


def _room_tokens(spec: ClusterSpec, role: Role, gpu: Gpu, size: ModelSize) -> int:
    """Tokens of KV that the GPUs have room for beside the model."""
    pool = spec.pools.by_role()[role]
    room = kv_capacity_tokens(
        size, gpu, pool.tensor_parallel, pool.pipeline_parallel, step_tokens=spec.batching.chunk_tokens
    )
    if not room:
        weights = f"{size.weight_bytes / 1e9:.3g} GB of weights"
        told = f"{weights} do not fit {_told_gpus(spec, role, gpu)}"
        raise SpecError(f"pools.{role}.tensor_parallel: {told}; the option --tensor-parallel sets it here")
    return room


def _told_gpus(spec: ClusterSpec, role: Role, gpu: Gpu | None) -> str:
    pool = spec.pools.by_role()[role]
    return f"{pool.tensor_parallel * pool.pipeline_parallel} x {'?' if gpu is None else gpu.name}"
