"""Clusters that a command brings up for itself, under names and on ports of their own, and takes down again.

Knows how to change a cluster's description; neither what it is for nor what it says.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from twinpool.cluster.state import ClusterState, StateFolder
from twinpool.cluster.up import lifeline, run_detached, take_down
from twinpool.core.spec_file import load_cluster

Values = dict[str, Any]


def read_values(spec_path: Path) -> Values:
    """What a cluster's YAML says, with every default and with absolute paths.

    Raises:
        SpecError: the YAML is wrong.
    """
    values: Values = load_cluster(spec_path).model_dump(mode="json")
    return values


@contextmanager
def own_cluster(
    values: Mapping[str, Any], name: str, folder: StateFolder, *, ends_with_caller: bool = True
) -> Iterator[ClusterState]:
    """Have a cluster up for as long as the block runs.

    Args:
        values: as a YAML holds them, paths absolute; name and ports are replaced.
        name: nobody else's, so that the cluster never meets another.
        ends_with_caller: also when this process is killed.

    Raises:
        SpecError: it cannot start. Nothing is left running.
    """
    gateway = {**values.get("gateway", {}), "grpc_port": 0, "http_port": 0}
    held = lifeline() if ends_with_caller else nullcontext()
    with tempfile.TemporaryDirectory(prefix="twinpool-") as temporary, held as lifeline_fd:
        path = Path(temporary) / f"{name}.yaml"
        path.write_text(json.dumps({**values, "name": name, "gateway": gateway}))  # JSON is YAML
        state = run_detached(path, folder, lifeline_fd)
        try:
            yield state
        finally:
            take_down(state, folder)
    for leftover in folder.path.glob(f"{name}.*"):  # the log and the lock; they stay where something failed
        leftover.unlink()
