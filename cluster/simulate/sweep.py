"""Runs a cluster's YAML against a trace at many rates, with several seeds each, and finds the largest that is met.

Knows options and runs; the search is simulator/rate_search.py's.
"""

from dataclasses import dataclass, replace

from twinpool.cluster.simulate.job import LoadedJob
from twinpool.cluster.simulate.offered import look_through
from twinpool.cluster.simulate.progress import RunProgress
from twinpool.cluster.simulate.run import Run, run_once
from twinpool.core.errors import SpecError
from twinpool.core.limits import shown
from twinpool.simulator.rate_search import RateSearch, Trial, rounded_rate, search_rate
from twinpool.simulator.traces.open import open_trace
from twinpool.simulator.traces.options import TraceOptions


@dataclass(frozen=True, slots=True)
class Sweep:
    """A search for the largest rate, between two, each run with ``num_seeds`` seeds from the job's on."""

    low_rps: float
    high_rps: float
    attainment: float
    num_seeds: int = 3


@dataclass(frozen=True, slots=True)
class RateSweep:
    """What a sweep found, and the run to show: the first seed's at the rate found, or at the lowest if none was."""

    found: RateSearch
    sweep: Sweep
    seeds: tuple[int, ...]
    shown_rps: float
    shown: Run

    @property
    def is_one_draw(self) -> bool:
        """Whether all seeds made the same of every rate: nothing is drawn of such a trace."""
        points = self.found.points
        return len(self.seeds) > 1 and all(trial == point.trials[0] for point in points for trial in point.trials)


def parse_sweep(text: str, attainment: float, num_seeds: int = 3) -> Sweep:
    """``rate=5:200``; bounds are rounded to four digits. Raises SpecError where it is not so."""
    name, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        sweep = Sweep(rounded_rate(float(low)), rounded_rate(float(high)), attainment, num_seeds)
    except ValueError:
        sweep = Sweep(0.0, 0.0, attainment)
    if name != "rate" or not 0 < sweep.low_rps <= sweep.high_rps <= 1e6:
        raise SpecError(f"--sweep: {shown(text)} must be rate=LOW:HIGH in requests/s up to 1e6, such as rate=1:100")
    return sweep


def run_sweep(loaded: LoadedJob, sweep: Sweep, progress: RunProgress) -> RateSweep:
    """Runs at many rates.

    Raises:
        SpecError: as `run_job`, or an option goes with one run only.
    """
    _check_options(loaded)
    job = loaded.job
    seeds = tuple(job.seed + number for number in range(sweep.num_seeds))
    for seed in seeds:  # the highest rate offers the most
        options = _at(job.trace, sweep.high_rps, seed)
        look_through(open_trace(job.trace_path, options), job.trace_path, loaded.limits)
    first_runs: dict[float, Run] = {}

    def run_at(rate_rps: float) -> list[Trial]:
        trials = []
        for seed in seeds:
            label = f"{rate_rps:.4g} requests/s, seed {seed}: "
            run = _run(loaded, _at(job.trace, rate_rps, seed), progress, label)
            first_runs.setdefault(rate_rps, run)
            trials.append((run.report.total.attainment or 0.0, run.report.values()))
        return trials

    found = search_rate(run_at, sweep.low_rps, sweep.high_rps, sweep.attainment)
    shown_rps = found.points[0].rate_rps if found.rate_rps is None else found.rate_rps
    return RateSweep(found, sweep, seeds, shown_rps, first_runs[shown_rps])


def _check_options(loaded: LoadedJob) -> None:
    job = loaded.job
    if job.timeline_path or job.event_log_path:
        raise SpecError(f"--{'timeline' if job.timeline_path else 'event-log'}: is of one run; leave --sweep out")
    if job.trace.rate_rps is not None or job.trace.steps or job.trace.scale != 1.0:
        raise SpecError("--sweep: chooses rates itself; leave --rate, --scale and --step out")


def _at(options: TraceOptions, rate_rps: float, seed: int) -> TraceOptions:
    return replace(options, rate_rps=rate_rps, seed=seed)


def _run(loaded: LoadedJob, options: TraceOptions, progress: RunProgress, label: str) -> Run:
    try:
        return run_once(loaded, options, progress, label)
    except SpecError as error:
        raise SpecError(f"{error} (at {options.rate_rps:.4g} requests/s, seed {options.seed})") from None
