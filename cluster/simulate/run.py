"""Runs a cluster's YAML against a trace in virtual time, once or at many rates, and gathers what is to be told.

Knows the simulator and files; nothing of how a report looks.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from twinpool.cluster.estimates import read_named_profile
from twinpool.cluster.simulate.faults import parse_faults
from twinpool.cluster.simulate.progress import RunProgress
from twinpool.core.errors import SpecError
from twinpool.core.limits import shown
from twinpool.core.spec import ClusterSpec
from twinpool.core.spec_file import read_cluster
from twinpool.simulator.cluster import simulate
from twinpool.simulator.event_log import EventLog
from twinpool.simulator.from_spec import ScenarioOptions, scenario_of
from twinpool.simulator.observer import Observer
from twinpool.simulator.rate_search import RateSearch, search_rate
from twinpool.simulator.report import Report, Window
from twinpool.simulator.scenario import PrefixCache, Scenario
from twinpool.simulator.timeline import Timeline
from twinpool.simulator.trace import Trace, TraceRequest
from twinpool.simulator.traces.open import open_trace
from twinpool.simulator.traces.options import TraceOptions

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run, as it is asked for."""

    spec_path: Path
    trace_path: Path
    trace: TraceOptions
    scenario: ScenarioOptions
    faults: tuple[str, ...] = ()
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    timeline_path: Path | None = None
    timeline_requests: int = 2000
    event_log_path: Path | None = None
    skip_too_long: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """A search for the largest rate, between two."""

    low_rps: float
    high_rps: float
    attainment: float


def parse_sweep(text: str, attainment: float) -> Sweep:
    """``rate=5:200``. Raises SpecError where it is not so."""
    name, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        sweep = Sweep(float(low), float(high), attainment)
    except ValueError:
        sweep = Sweep(0.0, 0.0, attainment)
    if name != "rate" or not 0 < sweep.low_rps <= sweep.high_rps <= 1e6:
        raise SpecError(f"--sweep: {shown(text)} must be rate=LOW:HIGH in requests/s, such as rate=1:100")
    return sweep


@dataclass(frozen=True, slots=True)
class Run:
    """One run's report, and how many requests were left out of its trace."""

    report: Report
    too_long: int


@dataclass(frozen=True, slots=True)
class RateSweep:
    """What a sweep found, and the run to show: that of the rate found, or of the lowest where none was."""

    found: RateSearch
    attainment: float  # wanted
    shown_rps: float
    shown: Run


def load_job(job: Job) -> tuple[Job, ClusterSpec]:
    """The YAML, and the job with the profile that the YAML names, where no option goes before it.

    Raises:
        SpecError: a line for each problem.
    """
    file = read_cluster(job.spec_path)
    if job.scenario.profile is None and job.scenario.table is None:
        job = replace(job, scenario=replace(job.scenario, profile=read_named_profile(file)))
    return job, file.spec


def run_job(job: Job, spec: ClusterSpec, progress: RunProgress) -> Run:
    """One run.

    Raises:
        SpecError: the YAML, the trace or an option is wrong; nothing was written but what the run had come to.
    """
    return _run(job, spec, make_scenario(job, spec), job.trace, progress, "")


def make_scenario(job: Job, spec: ClusterSpec) -> Scenario:
    """The scenario that a job's YAML, trace and options make. Raises SpecError."""
    first = next(iter(open_trace(job.trace_path, job.trace)), None)
    if first is None:
        raise SpecError(f"{job.trace_path}: no request arrives in what is played of it")
    scenario = scenario_of(spec, replace(job.scenario, hash_tokens=first.hash_tokens))
    faults = parse_faults(job.faults, [worker.worker_id for worker in scenario.workers])
    if scenario.prefix_cache is not PrefixCache.OFF:
        for worker in scenario.workers:
            scenario.piece_blocks(worker.kind)  # refuses before anything has run
    return replace(scenario, faults=faults)


def run_sweep(job: Job, spec: ClusterSpec, sweep: Sweep, progress: RunProgress) -> RateSweep:
    """Runs at many rates.

    Raises:
        SpecError: as `run_job`, or an option goes with one run only.
    """
    if job.timeline_path or job.event_log_path:
        raise SpecError(f"--{'timeline' if job.timeline_path else 'event-log'}: is of one run; leave --sweep out")
    if job.trace.rate_rps is not None or job.trace.steps or job.trace.scale != 1.0:
        raise SpecError("--sweep: chooses rates itself; leave --rate, --scale and --step out")
    scenario = make_scenario(replace(job, trace=replace(job.trace, rate_rps=sweep.low_rps)), spec)
    runs: dict[float, Run] = {}

    def run_at(rate_rps: float) -> tuple[float, Values]:
        label = f"{rate_rps:.4g} requests/s: "
        run = runs[rate_rps] = _run(job, spec, scenario, replace(job.trace, rate_rps=rate_rps), progress, label)
        share = run.report.total.attainment
        if share is None:
            raise SpecError(f"--warmup: at {rate_rps:.4g} requests/s nothing arrives after it; see --repeat")
        return share, run.report.values()

    found = search_rate(run_at, sweep.low_rps, sweep.high_rps, sweep.attainment)
    shown_rps = found.points[0].rate_rps if found.rate_rps is None else found.rate_rps
    return RateSweep(found, sweep.attainment, shown_rps, runs[shown_rps])


def _run(
    job: Job, spec: ClusterSpec, scenario: Scenario, options: TraceOptions, progress: RunProgress, label: str
) -> Run:
    trace = open_trace(job.trace_path, options)
    report = Report(scenario, _window(job, trace))
    with ExitStack() as files:
        observers: list[Observer] = [report, progress]
        if job.event_log_path is not None:
            observers.append(EventLog(_open(job.event_log_path, "--event-log", files)))
        if job.timeline_path is not None:
            stream = _open(job.timeline_path, "--timeline", files)
            timeline = Timeline(stream, scenario.workers, job.timeline_requests)
            files.callback(timeline.close)
            observers.append(timeline)
        progress.begin(label, options.requests, options.duration_s)
        taken = _Taken(trace, job, spec)
        simulate(scenario, taken, observers)
    return Run(report, taken.too_long)


def _window(job: Job, trace: Trace) -> Window:
    """What is measured. Only a cool-down has to know when the trace ends, and reads it for that."""
    if not job.cooldown_s:
        return Window(job.warmup_s)
    last_s = 0.0
    for request in trace:
        last_s = request.arrival_s
    return Window(job.warmup_s, last_s - job.cooldown_s)


class _Taken:
    """The requests of a trace that a gateway would take; those over the model's limit are left out or refused."""

    def __init__(self, trace: Trace, job: Job, spec: ClusterSpec) -> None:
        self._trace = trace
        self._job = job
        self._spec = spec
        self.too_long = 0  # left out

    def __iter__(self) -> Iterator[TraceRequest]:
        """Raises SpecError at the first request that is refused."""
        goals, most = self._spec.goals, self._spec.model.max_model_len
        for index, request in enumerate(self._trace):
            where = f"{self._job.trace_path}: request {index + 1}"
            if request.goal_class not in goals:
                known = ", ".join(sorted(goals))
                raise SpecError(f"{where} is of class {shown(request.goal_class)}; goals has {known}")
            if request.prompt_tokens + request.output_tokens <= most:
                yield request
            elif self._job.skip_too_long:
                self.too_long += 1
            else:
                told = f"{request.prompt_tokens} + {request.output_tokens} tokens, over model.max_model_len {most}"
                raise SpecError(f"{where} has {told}; raise that, or give --skip-too-long")


def _open(path: Path, option: str, files: ExitStack) -> TextIO:
    try:
        return files.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{option}: {path} cannot be written: {error.strerror}") from None
