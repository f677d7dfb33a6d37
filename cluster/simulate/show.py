"""Runs what `twinpool simulate` was asked for, and prints and draws what came of it.

Knows where output goes; the tables are table.py's, the plots plots.py's.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from twinpool.cluster.json_text import json_text
from twinpool.cluster.simulate.job import Job, LoadedJob, load_job
from twinpool.cluster.simulate.plots import plot_attainment, plot_latencies, plot_utilisation
from twinpool.cluster.simulate.progress import RunProgress
from twinpool.cluster.simulate.run import Run, run_job
from twinpool.cluster.simulate.sweep import Sweep, run_sweep
from twinpool.cluster.simulate.sweep_values import sweep_values
from twinpool.cluster.simulate.table import print_run, print_sweep, print_trace
from twinpool.core.errors import SpecError
from twinpool.core.spec import ClusterSpec
from twinpool.simulator.report import Report
from twinpool.simulator.tally import LATENCIES
from twinpool.simulator.traces.describe import describe
from twinpool.simulator.traces.open import open_to_describe
from twinpool.simulator.traces.options import TraceOptions

Values = dict[str, Any]


def run_and_show(job: Job, progress: RunProgress, *, as_json: bool) -> None:
    """One run. Raises what `run_job` raises."""
    loaded = _load(job)
    run = run_job(loaded, progress)
    progress.end()
    values = _values(loaded, run)
    if as_json:
        sys.stdout.write(json_text(values) + "\n")
    else:
        print_run(_console(), _title(loaded), values, _goals(loaded.spec))
    _draw_run(job.plot_folder, run.report, values, loaded.spec)


def sweep_and_show(job: Job, sweep: Sweep, progress: RunProgress, *, as_json: bool) -> None:
    """Runs at many rates; the report is that of the rate found, or of the lowest. Raises what `run_sweep` raises."""
    loaded = _load(job)
    done = run_sweep(loaded, sweep, progress)
    progress.end()
    values = _values(loaded, done.shown) | {"sweep": sweep_values(done)}
    if as_json:
        sys.stdout.write(json_text(values) + "\n")
    else:
        console = _console()
        print_sweep(console, values["sweep"])
        title = f"{_title(loaded)}, at {done.shown_rps:.10g} requests/s with seed {job.seed}"
        print_run(console, title, values, _goals(loaded.spec))
    _draw_run(job.plot_folder, done.shown.report, values, loaded.spec)
    if job.plot_folder is not None:
        _tell_files(plot_attainment(job.plot_folder, done.found, sweep.attainment))


def _load(job: Job) -> LoadedJob:
    loaded = load_job(job)
    for doubt in loaded.doubts:
        sys.stderr.write(f"twinpool: {doubt}\n")
    return loaded


def show_trace(path: Path, options: TraceOptions, *, as_json: bool) -> None:
    """Lengths and rate of a trace.

    Raises:
        SpecError: it cannot be read, or nothing arrives.
    """
    trace = open_to_describe(path, options)
    described = describe(trace)
    if described is None:
        raise SpecError(f"{path}: no request arrives in what is played of it")
    values = {"trace": str(path), "format": str(trace.format), "skipped": trace.num_skipped, **described.values()}
    if not trace.has_times:
        values |= {"duration_s": None, "mean_rate_rps": None}
    if as_json:
        sys.stdout.write(json_text(values) + "\n")
    else:
        print_trace(_console(), values)


def _head(loaded: LoadedJob, seed: int) -> Values:
    """What the numbers are of."""
    job, spec = loaded.job, loaded.spec
    return {
        "cluster": spec.name,
        "model": spec.model.path,
        "trace": str(job.trace_path),
        "policy": _policy(loaded),
        "seed": seed,
        "warmup_s": job.warmup_s,
        "cooldown_s": job.cooldown_s,
        "doubts": list(loaded.doubts),
    }


def _policy(loaded: LoadedJob) -> str:
    policy = loaded.options.policy
    return loaded.spec.router.policy if policy is None else str(policy)


def _values(loaded: LoadedJob, run: Run) -> Values:
    """All that --json prints of one run."""
    report = run.report
    return {
        **_head(loaded, loaded.job.seed),
        **report.values(),
        "too_long": run.offered.too_long,
        "never_happened": list(_never_happened(loaded, run)),
        "over_time": report.over_time(),
    }


def _never_happened(loaded: LoadedJob, run: Run) -> Iterator[str]:
    """Faults that came after all was over, in their own words."""
    for place in run.unreached_faults():
        yield loaded.job.faults[place]


def _title(loaded: LoadedJob) -> str:
    spec = loaded.spec
    pools = ", ".join(f"{pool.workers} {role}" for role, pool in spec.pools.by_role().items() if pool.workers)
    return f"{spec.name} ({pools}; {_policy(loaded)}) on {loaded.job.trace_path.name}"


def _goals(spec: ClusterSpec) -> Mapping[str, Values]:
    return {name: {"ttft_s": goal.ttft_s, "tpot_s": goal.tpot_s} for name, goal in spec.goals.items()}


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
