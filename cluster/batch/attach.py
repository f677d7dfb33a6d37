"""Finds the cluster that a batch goes to, or brings one up for it and takes it down again.

Knows how users name clusters; knows no request.
"""

import hashlib
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinpool.cluster.launch import plan_launch
from twinpool.cluster.own_cluster import own_cluster, read_values
from twinpool.cluster.state import StateFolder
from twinpool.cluster.stopping import StopSignals
from twinpool.cluster.up import DOWN_TIMEOUT_S
from twinpool.core.errors import SpecError

_NAME = re.compile(r"[a-z0-9-]+")  # of a cluster; anything else is a file


@dataclass(frozen=True, slots=True)
class Where:
    """What the user said: a name or a file, a gateway's address, or neither, for the only cluster that is up."""

    cluster: str | None
    address: str | None

    @property
    def spec_path(self) -> Path | None:
        """The YAML file, if it is one."""
        return Path(self.cluster) if self.cluster is not None and not _NAME.fullmatch(self.cluster) else None


@contextmanager
def attached(where: Where, output: Path, folder: StateFolder, stop: StopSignals) -> Iterator[list[str]]:
    """The gateways of the cluster; one of our own is up for as long as the block runs, however it ends.

    Raises:
        SpecError: there is no such cluster, or it cannot start as described. Nothing is left running.
        Stopped: a signal came while it started. Nothing is left running.
    """
    if where.spec_path is not None:
        with _own_cluster(where.spec_path, _own_name(output), folder, stop) as addresses:
            yield addresses
    elif where.address is not None:
        yield [where.address]
    else:
        yield _gateways(where.cluster, folder)


def _gateways(name: str | None, folder: StateFolder) -> list[str]:
    try:
        return list(folder.find(name).grpc)
    except SpecError as error:
        if name is None:
            raise SpecError(f"{error}; --cluster FILE brings one up for the batch") from None
        hint = f"; for the file of that name, write ./{name}" if Path(name).exists() else ""
        raise SpecError(f"{error}{hint}") from None


@contextmanager
def _own_cluster(spec_path: Path, name: str, folder: StateFolder, stop: StopSignals) -> Iterator[list[str]]:
    if not spec_path.exists():
        raise SpecError(f"{spec_path}: no such file, and no name of a cluster either")
    plan_launch(spec_path)  # problems are told with the lines of the user's own file
    with ExitStack() as until_left:
        with stop.raising():
            _await_end(name, folder)
            state = until_left.enter_context(own_cluster(read_values(spec_path), name, folder))
        yield list(state.grpc)


def _own_name(output: Path) -> str:
    """The same for each run of a batch, so that what a killed run left in Ray is found, and ended with the rest."""
    return "batch-" + hashlib.sha256(f"{socket.gethostname()} {output.resolve()}".encode()).hexdigest()[:16]


def _await_end(name: str, folder: StateFolder) -> None:
    """The cluster of a run that was killed a moment ago ends by itself."""
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while folder.is_running(name) and time.monotonic() < deadline:
        time.sleep(0.05)
