"""Makes a scenario of a cluster's YAML: the workers that its pools would have, the router's knobs, the goals.

Knows what a live cluster derives from the same YAML. Opens no file but the model's own config.json.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from twinpool.core.errors import SpecError
from twinpool.core.messages import Role
from twinpool.core.spec import ClusterSpec
from twinpool.model.shape import load_shape
from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import LatencyModel
from twinpool.router.route import Disaggregate, OnPrefillLoss, PlacementSettings, Policy
from twinpool.simulator.scenario import GoalClass, PrefixCache, Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.truth import TruthOptions, make_kind


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """What a run changes of the YAML, and what it adds to it; None leaves the YAML's."""

    truth: TruthOptions = field(default_factory=TruthOptions)
    policy: Policy | None = None
    num_gateways: int | None = None
    hash_tokens: int = 0  # of the pieces whose hashes the trace names; 0: it names none
    step_noise: float = 0.0
    seed: int = 0


def scenario_of(spec: ClusterSpec, options: ScenarioOptions = ScenarioOptions()) -> Scenario:
    """The scenario of a live cluster from the same YAML. Faults are left to the caller, who then knows the workers.

    Raises:
        SpecError: the model cannot be read, or nothing says how fast the workers are; one line.
    """
    shape = load_shape(spec.model.path, spec.model.dtype, spec.model.quantization)
    made = {
        role: make_kind(spec, role, shape, options.truth) for role, pool in spec.pools.by_role().items() if pool.workers
    }
    profile = options.truth.profile
    caches = spec.kv.prefix_cache and options.hash_tokens > 0
    scenario = Scenario(
        workers=tuple(_workers(spec, {role: kind for role, (kind, _) in made.items()})),
        goals={name: GoalClass(goal.goal, goal.priority_rank) for name, goal in spec.goals.items()},
        placement=placement_of(spec, {kind.name: belief for kind, belief in made.values()}, options.policy),
        admission=AdmissionSettings(max_queued=spec.router.max_queued),
        num_gateways=options.num_gateways or spec.gateway.replicas,
        chunk_tokens=spec.batching.chunk_tokens,
        max_running=spec.batching.max_running,
        parked_share=spec.kv.parked_share,
        prefix_cache=PrefixCache.HASHES if caches else PrefixCache.OFF,
        step_noise=options.step_noise,
        max_attempts=spec.router.max_attempts,
        seed=options.seed,
    )
    if profile is not None:
        scenario = replace(scenario, message_s=profile.message_s)
    return replace(scenario, hash_tokens=options.hash_tokens) if caches else scenario


def placement_of(
    spec: ClusterSpec, latencies: Mapping[str, LatencyModel], policy: Policy | None = None
) -> PlacementSettings:
    """The router's knobs, as a gateway has them."""
    first = next(iter(latencies.values()))
    return PlacementSettings(
        policy=policy or Policy(spec.router.policy),
        disaggregate=Disaggregate(spec.router.disaggregate),
        on_prefill_loss=OnPrefillLoss(spec.router.on_prefill_loss),
        latency=first,
        latencies=latencies,
    )


def parse_policy(name: str) -> Policy:
    """A policy by its name in the YAML. Raises SpecError for any other."""
    if name not in list(Policy):
        raise SpecError(f"--policy: {name!r} is not one of: {', '.join(Policy)}")
    return Policy(name)


def _workers(spec: ClusterSpec, kinds: Mapping[Role, WorkerKind]) -> Iterator[SimulatedWorker]:
    for role, pool in spec.pools.by_role().items():
        for index in range(pool.workers):
            yield SimulatedWorker(f"{role}-{index}", role, kinds[role])
