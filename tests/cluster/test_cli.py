"""The command line: exit codes, one line per problem, nothing heavy imported, nothing left running."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from twinpool import __version__

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "models" / "tiny"
POOLS = "pools: {prefill: {workers: 1}, decode: {workers: 1}}\n"


def twinpool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"TWINPOOL_STATE_DIR": str(folder / "state"), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, "-m", "twinpool.cluster.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, timeout=60)


def spec(folder: Path, **changes: str) -> str:
    sections = {
        "name": "name: cli-test\n",
        "model": f"model: {{path: {TINY}}}\n",
        "pools": POOLS,
        "gateway": "gateway: {grpc_port: 0, http_port: 0}\n",
    } | changes
    path = folder / "cluster.yaml"
    path.write_text("".join(sections.values()))
    return str(path)


def assert_refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in expected:
        assert text in done.stderr


def test_check_says_what_would_start(tmp_path: Path) -> None:
    done = twinpool(tmp_path, "check", spec(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ok: 2 workers, 1 gateway\n")


def test_every_yaml_problem_is_told_in_a_line_of_its_own(tmp_path: Path) -> None:
    path = spec(tmp_path, pools="pools: {prefill: {workers: -1}, decode: {wrokers: 1}}\n")
    done = twinpool(tmp_path, "check", path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    assert all("cluster.yaml:3: pools." in line for line in lines)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = spec(tmp_path, gateway=f"gateway: {{grpc_port: {port}, http_port: 0}}\n")
        assert_refused(twinpool(tmp_path, "up", path, "--detach"), "gateway.grpc_port", str(port))


def test_no_ray_at_the_address_is_told_at_once(tmp_path: Path, free_port: int) -> None:
    path = spec(tmp_path, ray=f'ray: {{address: "127.0.0.1:{free_port}"}}\n')
    assert_refused(twinpool(tmp_path, "up", path, "--detach"), "ray.address", str(free_port))


def test_no_cluster_up_is_told_and_how_to_start_one(tmp_path: Path) -> None:
    for command in (("status",), ("down",), ("generate", "hello")):
        assert_refused(twinpool(tmp_path, *command), "no cluster is up here", "twinpool up")


def test_a_gateway_that_does_not_answer_is_named(tmp_path: Path, free_port: int) -> None:
    done = twinpool(tmp_path, "status", "--address", f"127.0.0.1:{free_port}")
    assert done.returncode == 1
    assert str(free_port) in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    done = twinpool(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"twinpool {__version__}\n")


def test_schema_is_the_committed_one(tmp_path: Path) -> None:
    done = twinpool(tmp_path, "schema")
    assert json.loads(done.stdout) == json.loads((ROOT / "docs" / "cluster.schema.json").read_text())


def test_light_commands_import_neither_ray_nor_torch() -> None:
    code = (
        "import sys, twinpool.cluster.cli, twinpool.client.client, twinpool.cluster.show;"
        "print([name for name in ('ray', 'torch', 'pydantic', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("address", ["foo", "127.0.0.1:99999", "http://127.0.0.1:7070", "", ":7070"])
def test_an_address_that_is_none_is_bad_input(tmp_path: Path, address: str) -> None:
    done = twinpool(tmp_path, "generate", "hello", "--address", address)
    assert done.returncode == 2
    assert "must be HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['twinpool', 'schema']; from twinpool.cluster.cli import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert "No space left" in done.stderr.splitlines()[0]
