"""Runs a cluster's YAML against a trace in virtual time, once, and gathers what is to be told.

Knows the simulator and files; nothing of how a report looks.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from twinpool.cluster.simulate.job import LoadedJob
from twinpool.cluster.simulate.offered import Offered, Taken, look_through
from twinpool.cluster.simulate.outputs import Outputs
from twinpool.cluster.simulate.plots import make_folder
from twinpool.cluster.simulate.progress import RunProgress
from twinpool.simulator.cluster import simulate
from twinpool.simulator.event_log import EventLog
from twinpool.simulator.observer import Observer
from twinpool.simulator.report import Report
from twinpool.simulator.scenario import Scenario
from twinpool.simulator.timeline import Timeline
from twinpool.simulator.traces.open import open_trace
from twinpool.simulator.traces.options import TraceOptions


@dataclass(frozen=True, slots=True)
class Run:
    """One run's report, and what its trace offered."""

    report: Report
    offered: Offered
    scenario: Scenario

    def unreached_faults(self) -> tuple[int, ...]:
        """Places of the faults that were to befall workers after the last request had ended."""
        ended_s = self.report.end_s
        return tuple(place for place, fault in enumerate(self.scenario.faults) if fault.at_s > ended_s)


def run_job(loaded: LoadedJob, progress: RunProgress) -> Run:
    """One run.

    Raises:
        SpecError: the trace or an option is wrong, or a file cannot be written. No file was changed.
    """
    return run_once(loaded, loaded.job.trace, progress)


def run_once(loaded: LoadedJob, options: TraceOptions, progress: RunProgress, label: str = "") -> Run:
    """One run of the trace as ``options`` say, with their seed. Raises as `run_job` does."""
    job = loaded.job
    trace = open_trace(job.trace_path, options)
    offered = look_through(trace, job.trace_path, loaded.limits, job.warmup_s, job.cooldown_s)
    scenario = loaded.scenario_for(next(iter(trace)).hash_tokens, options.seed)
    report = Report(scenario, offered.window)
    if job.plot_folder is not None:
        make_folder(job.plot_folder)
    progress.begin(label, offered.requests)
    with Outputs({"--timeline": job.timeline_path, "--event-log": job.event_log_path}) as outputs, ExitStack() as ends:
        observers = [report, progress, *_writers(loaded, scenario, outputs, ends)]
        simulate(scenario, Taken(trace, job.trace_path, loaded.limits), observers)
    return Run(report, offered, scenario)


def _writers(loaded: LoadedJob, scenario: Scenario, outputs: Outputs, ends: ExitStack) -> Iterator[Observer]:
    if (log := outputs.stream("--event-log")) is not None:
        yield EventLog(log)
    if (stream := outputs.stream("--timeline")) is not None:
        timeline = Timeline(stream, scenario.workers, loaded.job.timeline_requests)
        ends.callback(timeline.close)
        yield timeline
