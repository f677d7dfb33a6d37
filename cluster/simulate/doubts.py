"""Says what of a simulated cluster may mislead: numbers of several machines in one run, and workers that will be idle.

Knows the YAML and where step times come from; refuses nothing.
"""

import re
from collections.abc import Iterator

from twinpool.cluster.simulate.inputs import Latency
from twinpool.core.spec import ClusterSpec
from twinpool.router.route import Disaggregate
from twinpool.simulator.from_spec import ScenarioOptions


def doubts_about(spec: ClusterSpec, options: ScenarioOptions, latency: Latency) -> tuple[str, ...]:
    """A sentence for each thing that is worth a second look."""
    return (*_idle_pool(spec), *_mixture(spec, options, latency))


def _idle_pool(spec: ClusterSpec) -> Iterator[str]:
    workers = spec.pools.prefill.workers
    if workers and Disaggregate(spec.router.disaggregate) is Disaggregate.NEVER:
        yield f"pools.prefill: its workers ({workers}) will be idle, as router.disaggregate is never"


def _mixture(spec: ClusterSpec, options: ScenarioOptions, latency: Latency) -> Iterator[str]:
    """Step times of one model and machine with the KV size, watts and price of another."""
    if not latency.model:
        return
    pools = [pool for pool in spec.pools.by_role().values() if pool.workers]
    others = []
    if not is_same_model(latency.model, spec.model.path):
        others.append(f"the KV size of {spec.model.path}")
    gpus = dict.fromkeys(pool.hardware or options.hardware for pool in pools)
    strange = [gpu for gpu in gpus if gpu is not None and not is_same_gpu(gpu, latency.machine)]
    if strange:
        others.append(f"the network, power and price of {' and '.join(strange)}")
    degrees = {options.tensor_parallel or pool.tensor_parallel for pool in pools}
    if latency.tensor_parallel is not None and degrees != {latency.tensor_parallel}:
        others.append(f"workers of tensor_parallel {' and '.join(map(str, sorted(degrees)))}")
    if others:
        degree = "" if latency.tensor_parallel is None else f" tp{latency.tensor_parallel}"
        measured = f"{latency.model} on {latency.machine}{degree}"
        yield f"{latency.told}: step times of {measured} go together with {', '.join(others)}"


def is_same_model(one: str, other: str) -> bool:
    """Whether two names may well be of one model: alike but for a folder, punctuation, case and an ending."""
    names = [re.sub(r"[^a-z0-9]", "", re.split("[:/]", name.rstrip("/"))[-1].lower()) for name in (one, other)]
    return names[0].startswith(names[1]) or names[1].startswith(names[0])


def is_same_gpu(gpu: str, machine: str) -> bool:
    """Whether the first word of a GPU's name (H100, say) is one of a machine's."""
    words = [re.split("[^a-z0-9]+", name.lower()) for name in (gpu, machine)]
    return words[0][0] in words[1]
