"""Submitting a batch as a Ray job, as far as it goes without a Ray."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinpool.cluster.batch.commands import app
from twinpool.cluster.batch.submit import job_entrypoint, submit_batch
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


@pytest.mark.slow
def test_an_address_without_a_dashboard_is_told_in_a_line(free_port: int) -> None:
    with pytest.raises(SpecError) as refused:
        submit_batch(f"http://127.0.0.1:{free_port}", "true", follow=False)
    assert str(refused.value).startswith(f"--ray-address: http://127.0.0.1:{free_port}: ")
    assert len(str(refused.value).splitlines()) == 1
