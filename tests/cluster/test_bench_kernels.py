import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from twinpool.cluster.bench import kernels as bench
from twinpool.cluster.bench.kernels_table import BEGIN, END, rewrite_tables, tables
from twinpool.core.errors import InvalidRequest
from twinpool.kernels.ahead_of_time import MachineCode


def row(kernel, variant, target, registers=40, faults=None):
    numbers = {"registers": registers, "shared_bytes": 2560, "programs_per_sm": 3, "faults": faults}
    return {"kernel": kernel, "variant": variant, "target": target, **numbers}


def command(*arguments, environment=None):
    return subprocess.run(
        [sys.executable, "-m", "twinpool.cluster.cli", "bench", "kernels", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )


def test_a_kernel_has_a_table_with_a_column_for_each_target():
    rows = [row("b", "x", "one"), row("a", "y", "one"), row("b", "x", "two", 50, "spills"), row("b", "z", "two", None)]
    assert tables(rows).splitlines() == [
        "### a",
        "",
        "| variant | one | two |",
        "|---|---|---|",
        "| y | 40 / 2.5 / 3 |  |",
        "",
        "### b",
        "",
        "| variant | one | two |",
        "|---|---|---|",
        "| x | 40 / 2.5 / 3 | 50 / 2.5 / 3 ! |",
        "| z |  | fails |",
    ]


def test_only_what_is_between_the_marks_is_rewritten(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    rewrite_tables(document, [row("a", "y", "one")])
    first = document.read_text()
    assert first.startswith(f"before\n{BEGIN}\n\n### a\n")
    assert first.endswith(f"\n{END}\nafter\n")
    assert "old" not in first
    rewrite_tables(document, [row("a", "y", "one")])
    assert document.read_text() == first


@pytest.mark.parametrize("text", [None, "no marks", f"{BEGIN} alone"])
def test_a_document_without_marks_is_refused_and_left_alone(tmp_path, text):
    document = tmp_path / "page.md"
    if text is not None:
        document.write_text(text)
    with pytest.raises(InvalidRequest, match="document: "):
        rewrite_tables(document, [])
    assert (document.read_text() if document.exists() else None) == text


@pytest.mark.parametrize(
    ("targets", "kernels", "complaint"),
    [(["sm_70"], [], "target: no target is called sm_70"), (["sm_90"], ["x"], "kernel: no kernel is called x")],
)
def test_targets_and_kernels_that_there_are_not_are_refused(targets, kernels, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        bench.compile_kernels(targets, kernels, 1, None)


def test_a_row_has_what_was_found_and_a_variant_that_fails_has_no_numbers():
    key = ("sm_90", "silu_mul", "fp16")
    code = MachineCode("silu_mul", "fp16", "sm_90", 4, 32, 0, 0, 0, 0, 0, 0, 0, 0)
    found = bench._row(key, code)
    assert {name: found[name] for name in ("kernel", "variant", "target", "registers", "spill_bytes")} == {
        "kernel": "silu_mul",
        "variant": "fp16",
        "target": "sm_90",
        "registers": 32,
        "spill_bytes": 0,
    }
    assert (found["programs_per_sm"], found["faults"]) == (16, None)
    failed = bench._row(key, "does not compile: OutOfResources")
    assert set(bench.COLUMNS) <= set(failed)
    assert (failed["registers"], failed["faults"]) == (None, "does not compile: OutOfResources")


@pytest.mark.slow
def test_the_command_prints_what_it_compiled_and_remembers_it(tmp_path):
    arguments = ("--compile-only", "--target", "sm_90", "--kernel", "silu_mul", "--cache", str(tmp_path), "--json")
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["command"] == "bench kernels"
    assert [row["variant"] for row in report["results"]] == ["fp16", "bf16", "fp32"]
    assert all(row["registers"] > 0 and row["faults"] is None for row in report["results"])
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(kept) == 3
    assert json.loads(command(*arguments).stdout)["results"] == report["results"]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == kept


@pytest.mark.slow
def test_the_command_times_nothing_yet_and_says_so():
    done = command()
    assert done.returncode == 2
    assert "--compile-only" in done.stderr


@pytest.mark.slow
def test_the_command_is_refused_where_kernels_are_interpreted():
    done = command("--compile-only", environment=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr
