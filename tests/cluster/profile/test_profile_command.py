"""`twinpool profile` end to end with a small grid: a file that can be read back, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinpool.cluster.cli import app
from twinpool.cluster.profile import command
from twinpool.cluster.profile.command import Measured, ProfileOptions, profile_cluster
from twinpool.cluster.profile_file import read_profile, write_profile
from twinpool.core.errors import SpecError
from twinpool.model.modelled_shape import modelled_shape

pytestmark = pytest.mark.slow
SMALL = ProfileOptions(grid_s=1.5, rounds=1, repeats=1, quick=True)
POOLS = "prefill: {workers: 2}, decode: {workers: 1}"


def write_spec(folder: Path, pools: str = POOLS, model: str = "modelled:paced") -> Path:
    path = folder / "cluster.yaml"
    model = f'{{path: "{model}", max_model_len: 128}}'
    path.write_text(f"name: profiled\nmodel: {model}\npools: {{{pools}}}\nbatching: {{max_running: 4}}\n")
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    told: list[str] = []
    measured = profile_cluster(write_spec(tmp_path_factory.mktemp("profile")), SMALL, told.append)
    assert len(told) == 1
    return measured


def test_a_cluster_s_profile_can_be_read_back(measured: Measured, tmp_path: Path) -> None:
    write_profile(tmp_path / "profile.json", measured.profile)
    profile = read_profile(tmp_path / "profile.json")
    assert profile == measured.profile
    assert set(profile.kinds) == {"prefill-tp1-pp1", "decode-tp1-pp1"}
    assert profile.model == "modelled:paced"
    for kind in profile.kinds.values():
        assert kind.kv_token_bytes == modelled_shape("modelled:paced").kv_token_bytes
        assert {"prefill_short", "decode_small"} <= set(kind.fit_errors)
        assert kind.latency_model(chunk_tokens=512).steps.decode_seconds(10.0, 1, 2) > 0
    values = measured.as_values()
    assert set(values["steps_measured"]) == {"prefill", "decode"}
    assert values["link"]


def test_a_lone_mixed_worker_has_no_link_to_measure(tmp_path: Path, no_leaked_processes: None) -> None:
    measured = profile_cluster(write_spec(tmp_path, "mixed: {workers: 1}"), SMALL, lambda _: None)
    (kind,) = measured.profile.kinds.values()
    assert (kind.role, measured.handoffs) == ("mixed", None)
    assert any(gap.startswith("link") for gap in kind.not_measured)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_the_command_prints_tables_or_one_object(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.setattr(command, "profile_cluster", lambda *_: measured)
    out = tmp_path / "profile.json"
    done = CliRunner().invoke(app, ["profile", "cluster.yaml", "--out", str(out), *more])
    assert done.exit_code == 0, done.output
    if more:
        assert json.loads(done.stdout)["kinds"].keys() == measured.profile.kinds.keys()
    else:
        assert "decode_small" in done.stdout
        assert "written: " in done.stdout
    assert read_profile(out) == measured.profile


@pytest.mark.parametrize("place", ["missing/profile.json", "."])
def test_a_bad_place_is_refused_before_anything_is_measured(tmp_path: Path, place: str) -> None:
    with pytest.raises(SpecError, match="--out"):
        command.run_profile(write_spec(tmp_path), tmp_path / place, quick=True, as_json=True)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for spec in (write_spec(tmp_path, pools="prefill: {workers: 1}"), write_spec(tmp_path, model="modelled:none")):
        done = subprocess.run(arguments(spec, tmp_path), capture_output=True, text=True, cwd="/", timeout=60)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "cluster.yaml" in done.stderr


def arguments(spec: Path, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "twinpool.cluster.cli", "profile", str(spec), "--out", str(folder / "p.json")]
    return [*command, "--quick"]


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(arguments(write_spec(tmp_path), tmp_path), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "measuring" in process.stderr.readline()
    children: list[int] = []
    while not children:
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGINT)
    process.wait(60)
    process.stderr.close()
    assert process.returncode != 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)  # noqa: PTH110
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.yaml"]
