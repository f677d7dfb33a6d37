"""Runs what `twinpool simulate` was asked for, and prints and draws what came of it.

Knows where output goes; the tables are table.py's, the plots plots.py's.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from twinpool.cluster.json_text import json_text
from twinpool.cluster.simulate.plots import plot_attainment, plot_latencies, plot_utilisation
from twinpool.cluster.simulate.progress import RunProgress
from twinpool.cluster.simulate.run import Job, RateSweep, Run, load_job, parse_sweep, run_job, run_sweep
from twinpool.cluster.simulate.table import print_run, print_sweep, print_trace
from twinpool.core.errors import SpecError
from twinpool.core.spec import ClusterSpec
from twinpool.simulator.report import Report
from twinpool.simulator.tally import LATENCIES
from twinpool.simulator.traces.describe import describe
from twinpool.simulator.traces.open import open_trace
from twinpool.simulator.traces.options import TraceOptions

Values = dict[str, Any]


def run_and_show(job: Job, progress: RunProgress, plot: Path | None, *, as_json: bool) -> None:
    """One run. Raises what `run_job` raises."""
    job, spec = load_job(job)
    run = run_job(job, spec, progress)
    progress.end()
    values = _values(job, spec, run)
    if as_json:
        sys.stdout.write(json_text(values) + "\n")
    else:
        print_run(_console(), _title(job, spec), values, _goals(spec))
    _draw_run(plot, run.report, values, spec)


def sweep_and_show(
    job: Job, sweep_text: str, attainment: float, progress: RunProgress, plot: Path | None, *, as_json: bool
) -> None:
    """Runs at many rates; the report is that of the rate found, or of the lowest. Raises what `run_sweep` raises."""
    job, spec = load_job(job)
    sweep = parse_sweep(sweep_text, attainment)
    done = run_sweep(job, spec, sweep, progress)
    progress.end()
    values = _values(job, spec, done.shown) | {"sweep": _sweep_values(done)}
    if as_json:
        sys.stdout.write(json_text(values) + "\n")
    else:
        console = _console()
        print_sweep(console, done.found, attainment)
        print_run(console, f"{_title(job, spec)}, at {done.shown_rps:.4g} requests/s", values, _goals(spec))
    _draw_run(plot, done.shown.report, values, spec)
    if plot is not None:
        _tell_files(plot_attainment(plot, done.found, attainment))


def show_trace(path: Path, options: TraceOptions, *, as_json: bool) -> None:
    """Lengths and rate of a trace.

    Raises:
        SpecError: it cannot be read, or nothing arrives.
    """
    trace = open_trace(path, options)
    described = describe(trace)
    if described is None:
        raise SpecError(f"{path}: no request arrives in what is played of it")
    values = {"trace": str(path), "format": str(trace.format), "skipped": trace.num_skipped, **described.values()}
    if as_json:
        sys.stdout.write(json_text(values) + "\n")
    else:
        print_trace(_console(), values)


def _head(job: Job, spec: ClusterSpec) -> Values:
    """What the numbers are of."""
    policy = job.scenario.policy
    return {
        "cluster": spec.name,
        "model": spec.model.path,
        "trace": str(job.trace_path),
        "policy": spec.router.policy if policy is None else str(policy),
        "seed": job.scenario.seed,
        "warmup_s": job.warmup_s,
        "cooldown_s": job.cooldown_s,
    }


def _values(job: Job, spec: ClusterSpec, run: Run) -> Values:
    """All that --json prints of one run."""
    report = run.report
    return {**_head(job, spec), **report.values(), "too_long": run.too_long, "over_time": report.over_time()}


def _title(job: Job, spec: ClusterSpec) -> str:
    head = _head(job, spec)
    pools = ", ".join(f"{pool.workers} {role}" for role, pool in spec.pools.by_role().items() if pool.workers)
    return f"{spec.name} ({pools}; {head['policy']}) on {job.trace_path.name}"


def _goals(spec: ClusterSpec) -> Mapping[str, Values]:
    return {name: {"ttft_s": goal.ttft_s, "tpot_s": goal.tpot_s} for name, goal in spec.goals.items()}


def _sweep_values(done: RateSweep) -> Values:
    found = done.found
    return {
        "rate_rps": found.rate_rps,
        "attainment": done.attainment,
        "is_bounded": found.is_bounded,
        "is_monotone": found.is_monotone,
        "points": [
            {"rate_rps": point.rate_rps, **{key: point.report[key] for key in _POINT_KEYS}} for point in found.points
        ],
    }


_POINT_KEYS = ("requests", "slo_attainment", "goodput_rps", "goodput_rps_per_gpu", "ttft_s", "tpot_s", "utilisation")


def _draw_run(folder: Path | None, report: Report, values: Values, spec: ClusterSpec) -> None:
    if folder is None:
        return
    goals = _goals(spec)
    goal = next(iter(goals.values())) if len(goals) == 1 else {}
    sketches = {name: report.total.sketch(name) for name in LATENCIES} | {"itl_s": report.itl()}
    _tell_files(plot_latencies(folder, sketches, goal) + plot_utilisation(folder, values["over_time"]))


def _tell_files(paths: list[Path]) -> None:
    for path in paths:
        sys.stderr.write(f"wrote {path}\n")


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
