"""Ending a cluster: its supervisor's process is gone when that is said, or it is said that it is not."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from twinpool.cluster import up as module
from twinpool.cluster.state import ClusterState, StateFolder
from twinpool.cluster.up import take_down
from twinpool.core.errors import Internal

pytestmark = pytest.mark.slow  # processes
SUPERVISOR = """
import signal, sys, time
from pathlib import Path
from twinpool.cluster.state import StateFolder
told = []
signal.signal(signal.SIGTERM, {on_term})
with StateFolder(Path(sys.argv[1])).lock("mine"):
    print("up", flush=True)
    while not told:
        time.sleep(0.01)
time.sleep(0.3)  # as a Ray takes time to end after the name is free
"""


@contextmanager
def supervisor(folder: Path, on_term: str) -> Iterator[subprocess.Popen[bytes]]:
    code = SUPERVISOR.replace("{on_term}", on_term)
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            yield process
        finally:
            process.kill()


def state_of(pid: int) -> ClusterState:
    return ClusterState("mine", pid, (), "", "")


def test_a_cluster_is_down_only_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    with supervisor(tmp_path, "lambda *_: told.append(1)") as process:
        take_down(state_of(process.pid), StateFolder(tmp_path))
        assert process.poll() == 0


def test_a_supervisor_that_does_not_end_is_killed_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DOWN_TIMEOUT_S", 0.1)
    with supervisor(tmp_path, "signal.SIG_IGN") as process:
        with pytest.raises(Internal, match=rf"process {process.pid}\) did not end within 0.1 s and was killed"):
            take_down(state_of(process.pid), StateFolder(tmp_path))
        assert process.wait() == -9


def test_a_process_that_holds_no_cluster_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        take_down(state_of(other.pid), StateFolder(tmp_path))
        assert other.poll() is None
        other.communicate(b"\n")
        take_down(state_of(other.pid), StateFolder(tmp_path))  # nor is one missed that is gone
    assert other.returncode == 0
