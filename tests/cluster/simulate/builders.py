"""A small cluster's YAML, a small trace, and the command run on them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twinpool.cluster.cli import app
from twinpool.core.errors import SpecError

YAML = """\
name: small
model: {path: modelled:paced, max_model_len: 1000}
pools: {prefill: {workers: 1}, decode: {workers: 2}}
goals: {default: {ttft_s: 0.1, tpot_s: 0.03}, batch: {ttft_s: 10, tpot_s: 1, priority: low}}
"""
LENGTHS = "prompt_tokens,output_tokens\n100,20\n400,5\n30,40\n"


def files(folder: Path, yaml: str = YAML, trace: str = LENGTHS) -> list[str]:
    """The command's two arguments."""
    (folder / "c.yaml").write_text(yaml)
    (folder / "t.csv").write_text(trace)
    return [str(folder / "c.yaml"), str(folder / "t.csv")]


def run(*arguments: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def told_at_fault(*arguments: str) -> str:
    """What the command says of input that it refuses, whose exit code is 2."""
    with pytest.raises(SpecError) as caught:
        CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
    return str(caught.value)


def run_json(*arguments: str) -> dict[str, Any]:
    """The one object that it prints with --json."""
    return json.loads(run(*arguments, "--json"))
