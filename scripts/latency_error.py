"""Prints how far the latency forms are off published measurements, as a Markdown table: docs/latency.md has its output.

    .venv/bin/python scripts/latency_error.py perf_model.csv [profiler-a100-80g.distserve.json] [--calibrate]

The first file is splitwise-sim's data/perf_model.csv, the second DistServe's
simdistserve/estimators/profile_data/profiler-a100-80g.distserve.json. With --calibrate, the efficiencies that fit best
are found anew and printed: those of router/roofline.py.
"""

import argparse
import sys
from pathlib import Path

from twinpool.cluster.latency_error import (
    HARDWARE,
    calibrated_distserve,
    calibrated_table,
    distserve_errors,
    table_errors,
)
from twinpool.core.errors import SpecError
from twinpool.router.latency_fit import Region


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="how far the latency forms are off published measurements")
    parser.add_argument("table", type=Path)
    parser.add_argument("distserve", type=Path, nargs="?")
    parser.add_argument("--calibrate", action="store_true", help="find the rooflines' efficiencies anew")
    options = parser.parse_args()
    try:
        lines = _calibrated(options) if options.calibrate else _errors(options)
    except SpecError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _calibrated(options: argparse.Namespace) -> list[str]:
    lines = [f"{hardware}: {calibrated_table(options.table, hardware)}" for hardware in HARDWARE]
    return lines + ([f"DistServe: {calibrated_distserve(options.distserve)}"] if options.distserve else [])


def _errors(options: argparse.Namespace) -> list[str]:
    """A line for each form, median and 90th percentile of the relative error by region."""
    rows = list(table_errors(options.table))
    rows += distserve_errors(options.distserve) if options.distserve else []
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row.group, row.form), {})[row.region] = f"{row.median:.1%} / {row.p90:.1%}"
    names = [region for region in Region if any(region in cell for cell in cells.values())]
    lines = [f"| measured | form | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for (group, form), cell in cells.items():
        lines.append(f"| {group} | {form} | {' | '.join(cell.get(name, '-') for name in names)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
