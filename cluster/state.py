"""Where a machine remembers its clusters: one locked state file per name.

The lock is held by the cluster's supervisor for as long as it lives, so a state file without a locked lock is stale.
Knows files, not processes.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from twinpool.core.errors import SpecError


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What a client or an operator on this machine needs to know of a running cluster."""

    name: str
    supervisor_pid: int
    grpc: tuple[str, ...]
    ray_address: str
    spec_path: str


class StateFolder:
    """The state files of one user. Created with mode 0700 on first use."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def log_path(self, name: str) -> Path:
        return self._file(name, "log")

    def _file(self, name: str, suffix: str) -> Path:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SpecError(f"{self.path}: cannot keep state there: {error.strerror}") from error
        return self.path / f"{name}.{suffix}"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Own the name until the block ends or the process dies; the state file goes with it.

        Raises:
            SpecError: a cluster of this name runs already.
        """
        with self._file(name, "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SpecError(f"a cluster named {name!r} is already up; `twinpool down {name}` ends it") from None
            try:
                yield
            finally:
                self._file(name, "json").unlink(missing_ok=True)

    def write(self, state: ClusterState) -> None:
        """Publish a cluster that is ready; readers see all of it or nothing."""
        path = self._file(state.name, "json")
        draft = path.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(state), indent=2))
        draft.replace(path)

    def is_running(self, name: str) -> bool:
        """Whether some process holds the name's lock."""
        path = self._file(name, "lock")
        if not path.exists():
            return False
        with path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def read(self, name: str) -> ClusterState | None:
        """The state of a running cluster that is ready; None for any other name."""
        if not self.is_running(name):
            return None
        try:
            fields = json.loads(self._file(name, "json").read_text())
        except FileNotFoundError:
            return None
        return ClusterState(**{**fields, "grpc": tuple(fields["grpc"])})

    def running(self) -> list[ClusterState]:
        """All clusters of this user that are ready, by name."""
        names = sorted(path.stem for path in self.path.glob("*.json"))
        return [state for name in names if (state := self.read(name)) is not None]

    def find(self, name: str | None) -> ClusterState:
        """The named cluster, or the only one.

        Raises:
            SpecError: there is no such cluster, or several and none was named.
        """
        states = self.running()
        if name is not None:
            chosen = [state for state in states if state.name == name]
            if not chosen:
                raise SpecError(f"no cluster named {name!r} is up here{_others(states)}")
            return chosen[0]
        if len(states) != 1:
            what = (
                "several clusters are up: name one"
                if states
                else "no cluster is up here; `twinpool up FILE` starts one"
            )
            raise SpecError(f"{what}{_others(states)}")
        return states[0]


def _others(states: list[ClusterState]) -> str:
    return f" (up: {', '.join(state.name for state in states)})" if states else ""


def default_folder(environment: dict[str, str] | os._Environ[str]) -> Path:
    """``TWINPOOL_STATE_DIR``, or ``twinpool`` under the user's XDG state folder."""
    if chosen := environment.get("TWINPOOL_STATE_DIR"):
        return Path(chosen)
    base = environment.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "twinpool"
