"""Makes a scenario of a cluster's YAML: the workers that its pools would have, the router's knobs, the goals.

Knows what a live cluster derives from the same YAML, from the same functions. Opens only the model's config.json.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from twinpool.core.errors import SpecError
from twinpool.core.messages import Role
from twinpool.core.spec import ClusterSpec
from twinpool.core.spec_fields import dotted
from twinpool.model.config import load_model_config
from twinpool.model.kv_layout import ITEM_BYTES
from twinpool.model.modelled_shape import PREFIX
from twinpool.model.shape import ModelShape, load_shape
from twinpool.router.estimate import LatencyModel, StepForm
from twinpool.router.first_estimate import check_profile, first_estimates, kinds_by_role
from twinpool.router.latency_profile import LatencyProfile
from twinpool.router.roofline import ModelSize
from twinpool.router.route import Policy
from twinpool.router.settings import admission_settings, placement_settings, tenant_limits
from twinpool.router.standing import OnMiss
from twinpool.simulator.scenario import GoalClass, PrefixCache, Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.truth import UNMEASURED_LINK, Sources, make_kind


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """What a run changes of the YAML, and what it adds to it; None leaves the YAML's.

    How long steps take is said by ``profile``, else by ``table``, else by a ``modelled:`` model's shape, else by the
    GPU's sheet and the model's shape.
    """

    profile: LatencyProfile | None = None  # of the YAML's router.profile, or instead of it
    table: StepForm | None = None  # of all workers
    hardware: str | None = None  # of pools that name none; a name of the sheets
    tensor_parallel: int | None = None  # of all pools
    kv_memory: int | str | None = None  # bytes of each worker, or "auto": what its GPUs have room for
    policy: str | None = None
    num_gateways: int | None = None
    hash_tokens: int = 0  # of the pieces whose hashes the trace names; 0: it names none
    step_noise: float = 0.0
    seed: int = 0


def scenario_of(spec: ClusterSpec, options: ScenarioOptions = ScenarioOptions()) -> Scenario:
    """The scenario of a live cluster from the same YAML; faults are for the caller to add.

    The router starts from what a live one would: the profile, or the GPU's sheet, or else its own default forms.

    Raises:
        SpecError: the model cannot be read, or nothing says how fast the workers are; one line.
    """
    spec = _changed(spec, options)
    shape = load_shape(spec.model.path, spec.model.dtype, spec.model.quantization)
    estimates = _estimates(spec, shape, options)
    sources = Sources(shape, options.profile, options.table, _size(spec, shape), estimates, options.kv_memory)
    kinds = {role: make_kind(spec, role, sources) for role, pool in spec.pools.by_role().items() if pool.workers}
    scenario = Scenario(
        workers=tuple(_workers(spec, kinds)),
        goals={
            name: GoalClass(goal.goal, goal.priority_rank, goal.deadline_s, OnMiss(goal.on_miss))
            for name, goal in spec.goals.items()
        },
        placement=placement_settings(
            policy=spec.router.policy,
            disaggregate=spec.router.disaggregate,
            on_prefill_loss=spec.router.on_prefill_loss,
            latencies=estimates,
            kv_token_bytes=shape.kv_token_bytes,
            chunk_tokens=spec.batching.chunk_tokens,
        ),
        admission=admission_settings(spec.router.max_queued, spec.router.aging_s, tenant_limits(spec.tenants)),
        num_gateways=spec.gateway.replicas,
        chunk_tokens=spec.batching.chunk_tokens,
        max_running=spec.batching.max_running,
        parked_share=spec.kv.parked_share,
        step_noise=options.step_noise,
        max_attempts=spec.router.max_attempts,
        seed=options.seed,
    )
    return _with_profile_and_hashes(scenario, spec, options)


def _with_profile_and_hashes(scenario: Scenario, spec: ClusterSpec, options: ScenarioOptions) -> Scenario:
    """What the YAML itself does not say."""
    if options.profile is not None:
        scenario = replace(scenario, message_s=options.profile.message_s)
    if spec.kv.prefix_cache and options.hash_tokens:
        scenario = replace(scenario, prefix_cache=PrefixCache.HASHES, hash_tokens=options.hash_tokens)
    return scenario


def parse_policy(name: str) -> str:
    """A policy by its name in the YAML. Raises SpecError for any other."""
    if name not in list(Policy):
        raise SpecError(f"--policy: {name!r} is not one of: {', '.join(Policy)}")
    return name


def _changed(spec: ClusterSpec, options: ScenarioOptions) -> ClusterSpec:
    """The YAML as the options change it. Not checked again: options are, and may ask for what no version can run."""
    pools = {}
    for role, pool in spec.pools.by_role().items():
        more = {"hardware": pool.hardware or (options.hardware if pool.workers else None)}
        pools[str(role)] = pool.model_copy(
            update=more | ({"tensor_parallel": options.tensor_parallel} if options.tensor_parallel else {})
        )
    update: dict[str, object] = {"pools": spec.pools.model_copy(update=pools)}
    if options.policy is not None:
        update["router"] = spec.router.model_copy(update={"policy": options.policy})
    if options.num_gateways is not None:
        update["gateway"] = spec.gateway.model_copy(update={"replicas": options.num_gateways})
    return spec.model_copy(update=update)


def _estimates(spec: ClusterSpec, shape: ModelShape, options: ScenarioOptions) -> Mapping[str, LatencyModel]:
    """What the router starts from."""
    problems = () if options.profile is None else check_profile(options.profile, shape.kv_token_bytes)
    estimates, more = first_estimates(spec, options.profile, _size(spec, shape))
    wrong = [*problems, *(() if options.table is not None else more)]
    if wrong:
        raise SpecError("\n".join(f"{dotted(problem.path)}: {problem.what}" for problem in wrong))
    if options.table is not None:
        known = LatencyModel(options.table, UNMEASURED_LINK, shape.kv_token_bytes, spec.batching.chunk_tokens)
        return dict.fromkeys(kinds_by_role(spec).values(), known)
    return estimates


def _size(spec: ClusterSpec, shape: ModelShape) -> ModelSize | None:
    """What a roofline needs of the model; a modelled one has no size to speak of."""
    if spec.model.path.startswith(PREFIX):
        return None
    return ModelSize.of(load_model_config(spec.model.path), ITEM_BYTES[shape.kv_layout.dtype])


def _workers(spec: ClusterSpec, kinds: Mapping[Role, WorkerKind]) -> Iterator[SimulatedWorker]:
    for role, pool in spec.pools.by_role().items():
        for index in range(pool.workers):
            yield SimulatedWorker(f"{role}-{index}", role, kinds[role])
