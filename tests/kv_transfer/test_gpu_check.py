"""scripts/gpu_check runs where little is installed, refuses where it can check nothing, and tells pass from fail."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts interpreters that import torch

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "gpu_check"
HEAVY = ("fastapi", "jinja2", "pydantic", "pytest", "ray", "ruamel", "tokenizers", "transformers", "typer")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=environment or None)


def test_it_needs_little() -> None:
    names = [f"twinpool.kv_transfer.{path.stem}" for path in (ROOT / "kv_transfer").glob("[a-z]*.py")]
    code = (
        "import importlib, runpy, sys\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='imported')\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = run("-c", code)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize(("link", "needs"), [("--nccl", "two GPUs"), ("--cuda-ipc", "a GPU")])
def test_with_too_few_gpus_it_says_so_and_checks_nothing(link: str, needs: str, tmp_path: Path) -> None:
    done = run(SCRIPT, link, "--out", tmp_path / "out.json", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert f"gpu_check {link} needs {needs}; torch sees 0. Nothing was checked" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("link", "kind"), [("--nccl", "strict-nccl"), ("--cuda-ipc", "strict-cuda-ipc")])
def test_a_rehearsal_writes_down_each_check(link: str, kind: str, tmp_path: Path) -> None:
    done = run(SCRIPT, link, "--rehearse", "--only", "a_group_of_another", "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["link"] == kind
    assert [(result["check"], result["passed"]) for result in written["results"]] == [
        ("a_group_of_another_handoff_is_refused", True),
        ("a_group_of_another_epoch_is_refused", True),
    ]


def test_a_check_that_fails_is_told_with_its_reason_and_the_next_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    script, out = runpy.run_path(str(SCRIPT), run_name="imported"), tmp_path / "out.json"
    reasons = iter(["it was wrong", ""])
    assert not script["run_all"](lambda _: next(reasons), script["CHECKS"][:2], {}, out)
    results = json.loads(out.read_text())["results"]
    assert [(result["passed"], result["reason"]) for result in results] == [(False, "it was wrong"), (True, "")]
    assert "1 of 2 passed" in capsys.readouterr().out
