"""What the router supposes of each kind of worker before it has seen any work: from a profile, or from the GPU's sheet.

Knows the cluster's YAML and forms; the simulator asks the same question, and gets the same answer.
"""

from twinpool.core.messages import Role
from twinpool.core.spec import ClusterSpec
from twinpool.core.spec_fields import Problem
from twinpool.core.spec_pools import PoolSpec
from twinpool.router.estimate import LatencyModel, LinkCost
from twinpool.router.hardware import GPUS, Gpu, UnknownNumber
from twinpool.router.latency_profile import LatencyProfile, kind_name
from twinpool.router.roofline import ModelSize, roofline_form


def kinds_by_role(spec: ClusterSpec) -> dict[Role, str]:
    """The kind of each pool's workers, empty pools too: a worker that takes another role is of that pool's kind."""
    return {
        role: kind_name(role, pool.tensor_parallel, pool.pipeline_parallel)
        for role, pool in spec.pools.by_role().items()
    }


def first_estimates(
    spec: ClusterSpec, profile: LatencyProfile | None, size: ModelSize | None
) -> tuple[dict[str, LatencyModel], tuple[Problem, ...]]:
    """Latency models by kind, and what is wrong with the YAML's keys.

    The profile goes first. Pools that it does not know take the roofline of their ``hardware``, where that is named and
    the model has a ``size``. The others are left out: the default of PlacementSettings holds for them.
    """
    found, problems = dict[str, LatencyModel](), list[Problem]()
    names = kinds_by_role(spec)
    for role, pool in spec.pools.by_role().items():
        measured = profile.of_kind(names[role]) if profile is not None else None
        if measured is not None:
            found[names[role]] = measured.latency_model(spec.batching.chunk_tokens)
        elif pool.hardware is not None and size is not None:
            try:
                found[names[role]] = _computed(pool, GPUS[pool.hardware], size, spec.batching.chunk_tokens)
            except UnknownNumber as error:
                problems.append(Problem(("pools", str(role), "hardware"), f"{error}; give router.profile instead"))
    return found, tuple(problems)


def _computed(pool: PoolSpec, gpu: Gpu, size: ModelSize, chunk_tokens: int) -> LatencyModel:
    steps = roofline_form(size, gpu, pool.tensor_parallel, pool.pipeline_parallel)
    link = LinkCost()
    if gpu.nic_bytes_per_s is not None:  # each rank sends its part by its own
        ranks = pool.tensor_parallel * pool.pipeline_parallel
        link = LinkCost(link.latency_s, ranks * gpu.nic_bytes_per_s)
    return LatencyModel(steps, link, size.kv_token_bytes, chunk_tokens)


def check_profile(profile: LatencyProfile, kv_token_bytes: int) -> tuple[Problem, ...]:
    """A profile of a model whose KV is of another size was measured with another model, or another dtype."""
    other = sorted({kind.kv_token_bytes for kind in profile.kinds.values()} - {kv_token_bytes})
    if not other:
        return ()
    what = f"was measured with a model of {other[0]} bytes of KV a token ({profile.model}), not {kv_token_bytes}"
    return (Problem(("router", "profile"), what),)
