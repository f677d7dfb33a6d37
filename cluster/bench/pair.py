"""The two clusters that a comparison runs: a disaggregated one, and one of as many mixed workers, equal in all else.

Knows how to change a cluster's description; measures nothing.
"""

import json
from pathlib import Path

from twinpool.cluster.own_cluster import Values, read_values
from twinpool.core.errors import SpecError
from twinpool.core.spec_file import load_cluster


def read_pair(spec_path: Path) -> tuple[Values, Values]:
    """A disaggregated cluster as its YAML has it, and one of as many mixed workers, equal in all else.

    Raises:
        SpecError: the YAML is wrong, or has no prefill or no decode workers, or workers that mixed ones cannot equal.
    """
    spec = load_cluster(spec_path)
    pools = spec.pools.by_role()
    if not (spec.pools.prefill.workers and spec.pools.decode.workers):
        raise SpecError(f"{spec_path}: pools: --compare needs prefill and decode workers")
    split = read_values(spec_path)
    dumped = [split["pools"][str(role)] for role, pool in pools.items() if pool.workers]
    common = {name: value for name, value in dumped[0].items() if name != "workers"}
    for pool in dumped:
        for name, value in common.items():
            if pool[name] != value:
                raise SpecError(f"{spec_path}: pools: {name} differs between pools, so mixed workers cannot be equal")
    mixed = json.loads(json.dumps(split))
    mixed["pools"] = {"mixed": {**common, "workers": sum(pool.workers for pool in pools.values())}}
    mixed["router"]["disaggregate"] = "never"
    return split, mixed
