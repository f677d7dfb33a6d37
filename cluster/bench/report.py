"""What every benchmark prints: its results with the machine and the commit that made them, as JSON or as a table.

Knows no benchmark.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import twinpool
from twinpool.cluster.json_text import json_text

Values = dict[str, Any]
Column = str | tuple[str, str]  # a key, ``a.b`` for key b of the object a; and its header, where it is not the key
GIT_TIMEOUT_S = 10.0


def envelope(command: str, results: Sequence[Values]) -> Values:
    """The one object that a benchmark prints with --json."""
    return {"command": command, "machine": describe_machine(), "commit": find_commit(), "results": list(results)}


def print_report(command: str, results: Sequence[Values], columns: Sequence[Column], *, as_json: bool) -> None:
    """Print the envelope, or a table of some of its columns."""
    report = envelope(command, results)
    if as_json:
        sys.stdout.write(json_text(report) + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if value is not None)
    console.print(f"twinpool {command}; commit {report['commit']}; {machine}")
    table = Table(box=None, header_style="bold")
    named = [(column, column) if isinstance(column, str) else column for column in columns]
    for _, header in named:
        table.add_column(header, overflow="fold")
    for result in results:
        table.add_row(*(_cell(_look_up(result, key)) for key, _ in named))
    console.print(table)


def _look_up(values: Any, column: str) -> Any:
    for key in column.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_machine() -> Values:
    """What a number depends on; versions are null where a package is absent."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        **{name: _version_of(name) for name in ("torch", "triton", "transformers", "grpcio", "ray")},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_commit() -> str | None:
    """The short hash of the clone that this code runs from; None where it is no clone."""
    root = Path(twinpool.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
