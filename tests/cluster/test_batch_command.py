"""The command that runs a batch: exit codes, what it tells, and signals at any time."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cluster.batch_files import by_id, completion
from tests.cluster.batch_runs import in_a_loop, put, run
from tests.cluster.local_cluster import make_plan, running
from twinpool.cluster.batch.commands import app
from twinpool.core.errors import SpecError

pytestmark = pytest.mark.slow  # processes and real sockets


class Command:
    """``python -m twinpool.cluster.batch`` as a process, beside a cluster in this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {"TWINPOOL_STATE_DIR": str(folder / "state")}

    async def start(self, *options: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "twinpool.cluster.batch", "in", "out", *options),
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def run(self, *options: str) -> tuple[int | None, str, str]:
        process = await self.start(*options)
        stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, stdout.decode(), stderr.decode()


@in_a_loop
async def test_the_command_tells_what_it_did_and_continues_what_was_begun(tmp_path: Path) -> None:
    put(tmp_path, [completion(f"r{i}") for i in range(10)])
    async with running(make_plan()) as cluster:
        address = ("--address", cluster.addresses[0])
        code, stdout, stderr = await Command(tmp_path).run(*address, "--json")
        told = json.loads(stdout)
        assert (code, told["requests"], told["answered"], told["completion_tokens"]) == (0, 10, 10, 40)
        assert "10/10 done, 0 with an error" in stderr
        lines = (tmp_path / "out").read_bytes().splitlines(keepends=True)
        (tmp_path / "out").write_bytes(b"".join(lines[:6]) + lines[6][:30])
        code, stdout, _ = await Command(tmp_path).run(*address)
    assert code == 0
    assert "10 requests: 10 answered, 0 with an error, 0 left; 6 of them done by earlier runs\n" in stdout
    assert len(by_id(tmp_path / "out")) == 10


@in_a_loop
async def test_requests_with_an_error_are_not_told_as_answered(tmp_path: Path) -> None:
    put(tmp_path, [completion("a"), completion("b", tools=[]), "nonsense"])
    async with running(make_plan()) as cluster:
        code, stdout, _ = await Command(tmp_path).run("--address", cluster.addresses[0])
    assert code == 1
    assert stdout.splitlines()[0] == "3 requests: 1 answered, 2 with an error, 0 left"


@in_a_loop
async def test_what_is_all_answered_needs_no_cluster(tmp_path: Path) -> None:
    put(tmp_path, [completion("a")])
    async with running(make_plan()) as cluster:
        await run(tmp_path, cluster.addresses)
    assert (await Command(tmp_path).run("--cluster", "no-such"))[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@in_a_loop
async def test_a_run_that_is_stopped_half_way_is_continued(tmp_path: Path, number: signal.Signals) -> None:
    put(tmp_path, [completion(f"r{i}", max_tokens=10) for i in range(60)])
    async with running(make_plan(worker={"model": "modelled:paced"})) as cluster:
        options = ("--address", cluster.addresses[0], "--concurrency", "4", "--json")
        process = await Command(tmp_path).start(*options)
        while not (tmp_path / "out").exists() or (tmp_path / "out").read_bytes().count(b"\n") < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        process.send_signal(number)
        stdout, _ = await asyncio.wait_for(process.communicate(), 30)
        num_before = (tmp_path / "out").read_bytes().count(b"\n")
        assert num_before < 60
        if number is signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 1
            assert json.loads(stdout)["stopped"] == signal.Signals(number).name
            assert json.loads(stdout)["missing"] == 60 - num_before
        tally = await run(tmp_path, cluster.addresses)
        await cluster.assert_idle()
    assert (tally.before, tally.exit_code) == (num_before, 0)
    assert set(by_id(tmp_path / "out")) == {f"r{i}" for i in range(60)}


@in_a_loop
async def test_bad_input_ends_with_2_and_a_line_for_each_problem(tmp_path: Path) -> None:
    put(tmp_path, [completion("a"), completion("a")])
    code, _, stderr = await Command(tmp_path).run()
    assert (code, stderr) == (2, "twinpool: in:2: custom_id 'a' is that of line 1\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cluster", "no-such"], "no cluster named 'no-such' is up here"),
        (["--cluster", "no/such.yaml"], "no/such.yaml: no such file"),
        ([], "no cluster is up here; `twinpool up FILE` starts one; --cluster FILE brings one up for the batch"),
        (["--cluster", "in"], "no cluster named 'in' is up here; for the file of that name, write ./in"),
    ],
)
def test_clusters_that_are_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setenv("TWINPOOL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    put(tmp_path, [completion("a")])
    refused = CliRunner().invoke(app, ["run", str(tmp_path / "in"), str(tmp_path / "out"), *options])
    assert isinstance(refused.exception, SpecError)
    assert said in str(refused.exception)


@pytest.mark.parametrize("options", [["--cluster", "a", "--address", "127.0.0.1:1"], ["--concurrency", "0"]])
def test_options_that_contradict_or_pass_their_limits_are_refused(tmp_path: Path, options: list[str]) -> None:
    put(tmp_path, [completion("a")])
    assert CliRunner().invoke(app, ["run", str(tmp_path / "in"), str(tmp_path / "out"), *options]).exit_code == 2


@in_a_loop
async def test_an_unreachable_cluster_ends_with_1_and_says_how_far_it_got(tmp_path: Path, free_port: int) -> None:
    put(tmp_path, [completion("a"), "nonsense"])
    code, stdout, _ = await Command(tmp_path).run("--address", f"127.0.0.1:{free_port}", "--patience-s", "0.2")
    assert code == 1
    assert "2 requests: 0 answered, 1 with an error, 1 left\n" in stdout
    assert "what is wrong with a request is in the output" in stdout
    assert "run it again for the 1 that are left" in stdout
    assert "ended early: the cluster took no request for 0.2 s" in stdout
