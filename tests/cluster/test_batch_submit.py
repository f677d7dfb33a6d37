"""Submitting a batch as a Ray job, as far as it goes without a Ray."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinpool.cluster.batch.commands import app
from twinpool.cluster.batch.submit import AGENT_WAIT_S, job_entrypoint, submit_batch, when_agent_is_up
from twinpool.core.errors import SpecError


def test_the_jobs_command_has_absolute_paths_and_survives_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = job_entrypoint("python", Path("my in"), Path("/out"), ["--cluster", "it's.yaml"])
    parts = ["python", "-m", "twinpool.cluster.batch", str(tmp_path / "my in"), "/out", "--cluster", "it's.yaml"]
    assert shlex.split(command) == parts


def test_an_address_that_is_no_url_is_bad_input() -> None:
    refused = CliRunner().invoke(app, ["submit", "in", "out", "--ray-address", "127.0.0.1:8265"])
    assert refused.exit_code == 2
    assert "http://HOST:8265" in refused.output


class StartingRay:
    """Refuses jobs in Ray's words until it was asked often enough."""

    def __init__(self, num_refusals: int, told: str) -> None:
        self.num_refusals, self.told = num_refusals, told
        self.pauses: list[float] = []

    def submit(self) -> str:
        if len(self.pauses) < self.num_refusals:
            raise RuntimeError(f"Request failed with status code 500: {self.told}.")
        return "job"


def test_a_ray_that_has_just_started_is_waited_for() -> None:
    ray = StartingRay(3, "No available agent to submit job, please try again later")
    assert when_agent_is_up(ray.submit, ray.pauses.append) == "job"
    assert len(ray.pauses) == 3


@pytest.mark.parametrize(("told", "pauses"), [("No available agent to submit job", AGENT_WAIT_S), ("out of disk", 0)])
def test_a_ray_that_takes_no_job_says_why_in_the_end(told: str, pauses: int) -> None:
    ray = StartingRay(10**6, told)
    with pytest.raises(RuntimeError, match=told):
        when_agent_is_up(ray.submit, ray.pauses.append)
    assert len(ray.pauses) == pauses


@pytest.mark.slow
def test_an_address_without_a_dashboard_is_told_in_a_line(free_port: int) -> None:
    with pytest.raises(SpecError) as refused:
        submit_batch(f"http://127.0.0.1:{free_port}", "true", follow=False)
    assert str(refused.value).startswith(f"--ray-address: http://127.0.0.1:{free_port}: ")
    assert len(str(refused.value).splitlines()) == 1
