"""Whether the nodes of a Ray that runs already can host a cluster: same Twinpool, and the model where the YAML says."""

import socket
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import twinpool
from twinpool.core.errors import SpecError

ANSWER_TIMEOUT_S = 60.0


@ray.remote(num_cpus=0, max_retries=0)
def _look(model: str) -> tuple[str, str, bool]:
    return socket.gethostname(), twinpool.__version__, ":" in model or Path(model).is_dir()


def check_nodes(model: str) -> None:
    """Ask every live node.

    Raises:
        SpecError: one line for each node that differs, or that cannot answer.
    """
    look: Any = _look
    problems = []
    nodes: Any = ray.nodes  # untyped
    for node in nodes():
        if not node["Alive"]:
            continue
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        where = f"ray.address: node {node['NodeManagerAddress']}"
        try:
            host, version, has_model = ray.get(
                look.options(scheduling_strategy=strategy).remote(model), timeout=ANSWER_TIMEOUT_S
            )
        except RayError as error:
            problems.append(f"{where} cannot run twinpool: {str(error).strip().splitlines()[-1]}")
            continue
        if version != twinpool.__version__:
            problems.append(f"{where} ({host}) has twinpool {version}, this machine {twinpool.__version__}")
        if not has_model:
            problems.append(f"{where} ({host}) has no model directory {model}")
    if problems:
        raise SpecError("\n".join(problems))
