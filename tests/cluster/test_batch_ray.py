"""A batch as a Ray job with a cluster of its own: killed half-way, submitted again, and each answer is there once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from tests.cluster.batch_files import by_id, completion, write_lines

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

SPEC = """
name: never-used
model: {path: "modelled:paced", max_model_len: 512}
pools: {mixed: {workers: 1}}
kv: {memory: 8MiB}
ray: {address: auto}
"""
HOST_A_RAY = """
import pathlib, ray, sys
context = ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[1]),
                   object_store_memory=80 * 2**20, configure_logging=False, _temp_dir=sys.argv[2])
address = ray.get_runtime_context().gcs_address
(pathlib.Path(sys.argv[2]) / "ray_current_cluster").write_text(address)  # as `ray start` does: a job asks for this one
print(context.dashboard_url, flush=True)
sys.stdin.read()
"""


class RayMachine:
    """A Ray with a dashboard that somebody runs, and a folder for batches."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._temporary = TemporaryDirectory(prefix="tw-ray-")  # not in the test's: paths of sockets must be short
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PATH": path, "RAY_AUTH_MODE": "token", "TWINPOOL_STATE_DIR": str(folder / "state")}
        self._environment = os.environ | own
        self._host = subprocess.Popen(
            [sys.executable, "-c", HOST_A_RAY, str(port), self._temporary.name],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL},
            env=self._environment,
            text=True,
        )
        assert self._host.stdout is not None
        self.dashboard = f"http://{self._host.stdout.readline().strip()}"

    def submit(self) -> subprocess.Popen[str]:
        """`twinpool batch submit --follow` of the folder's batch."""
        command = [sys.executable, "-m", "twinpool.cluster.cli", "batch", "submit", "in", "out", "--cluster", "c.yaml"]
        command += ["--ray-address", self.dashboard, "--concurrency", "8", "--follow"]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=self._environment,
        )

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those of this folder's batch, by their whole command lines."""
        below = psutil.Process(self._host.pid).children(recursive=True)
        mine = [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        return [process for process in mine if set(words) <= set(process.cmdline())]

    def close(self) -> None:
        assert self._host.stdin is not None
        assert self._host.stdout is not None
        family = psutil.Process(self._host.pid).children(recursive=True)
        self._host.stdin.close()
        self._host.stdout.close()
        self._host.wait(30)
        _, alive = psutil.wait_procs(family, timeout=30)
        self._temporary.cleanup()
        assert not alive, f"left running: {alive}"


@pytest.fixture
def machine(tmp_path: Path, free_port: int) -> Iterator[RayMachine]:
    machine = RayMachine(tmp_path, free_port)
    yield machine
    machine.close()


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_job_that_is_killed_half_way_is_continued_by_the_next(machine: RayMachine) -> None:
    (machine.folder / "c.yaml").write_text(SPEC)
    write_lines(machine.folder / "in", [completion(f"r{i}", (1, 2, 3 + i), max_tokens=20) for i in range(200)])
    output = machine.folder / "out"

    first = machine.submit()
    deadline = time.monotonic() + 100
    while num_lines(output) < 100:
        assert first.poll() is None
        assert time.monotonic() < deadline, "the job does not get on"
        time.sleep(0.02)
    (driver,) = machine.processes("twinpool.cluster.batch", "-m")
    supervisors = [process for process in driver.children() if "twinpool.cluster.supervisor" in process.cmdline()]
    driver.kill()
    told, _ = first.communicate(timeout=60)
    assert first.returncode == 1, told
    num_first = num_lines(output)
    assert 100 <= num_first < 200

    second = machine.submit()
    told, _ = second.communicate(timeout=150)
    assert second.returncode == 0, told
    assert f"200 requests: 200 answered, 0 with an error, 0 left; {num_first} of them done by earlier runs" in told
    answers = by_id(output)
    assert num_lines(output) == 200
    assert set(answers) == {f"r{i}" for i in range(200)}
    assert {len(json.dumps(answer["error"])) for answer in answers.values()} == {len("null")}
    assert supervisors
    _, alive = psutil.wait_procs(supervisors, timeout=30)
    assert not alive, "the killed job's cluster outlived it"
    assert list((machine.folder / "state").iterdir()) == []
