"""What `twinpool simulate` was asked for, and the cluster that its YAML and options make, checked before anything runs.

Knows files and options by name; runs nothing.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from twinpool.cluster.estimates import read_named_profile
from twinpool.cluster.simulate.doubts import doubts_about
from twinpool.cluster.simulate.faults import parse_faults
from twinpool.cluster.simulate.inputs import Latency, read_latency
from twinpool.cluster.simulate.offered import Limits
from twinpool.cluster.simulate.outputs import Named, check_outputs
from twinpool.cluster.simulate.plots import plot_paths
from twinpool.core.errors import SpecError
from twinpool.core.limits import shown
from twinpool.core.spec import ClusterSpec, check_against_model
from twinpool.core.spec_fields import Problem
from twinpool.core.spec_file import SpecFile, read_cluster
from twinpool.model.shape import ModelShape, load_shape
from twinpool.simulator.from_spec import ScenarioOptions, scenario_of
from twinpool.simulator.scenario import PrefixCache, Scenario
from twinpool.simulator.traces.options import TraceOptions
from twinpool.simulator.truth import AUTO


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run, as it is asked for."""

    spec_path: Path
    trace_path: Path
    trace: TraceOptions
    scenario: ScenarioOptions
    latency_path: Path | None = None
    latency_rows: str | None = None
    faults: tuple[str, ...] = ()
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    timeline_path: Path | None = None
    timeline_requests: int = 2000
    event_log_path: Path | None = None
    plot_folder: Path | None = None
    skip_too_long: bool = False

    @property
    def seed(self) -> int:
        """Of a single run, and of the first run at each rate."""
        return self.trace.seed

    @property
    def outputs(self) -> tuple[Named, ...]:
        """Every file that may be written."""
        files = [("--timeline", self.timeline_path), ("--event-log", self.event_log_path)]
        plots = [] if self.plot_folder is None else plot_paths(self.plot_folder)
        return (*((name, path) for name, path in files if path is not None), *(("--plot", path) for path in plots))


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """A job whose files were read and found good, its trace aside."""

    job: Job
    spec: ClusterSpec
    options: ScenarioOptions  # the job's, with what the files say
    scenario: Scenario  # of a trace without shared prefixes
    doubts: tuple[str, ...]  # of what may mislead: a sentence each

    @property
    def limits(self) -> Limits:
        """What this cluster takes."""
        return Limits(self.spec, self.job.skip_too_long)

    def scenario_for(self, hash_tokens: int, seed: int) -> Scenario:
        """That of a trace whose prefixes have names for pieces of so many tokens (0: none).

        Raises:
            SpecError: blocks are not a whole part of those pieces.
        """
        if not hash_tokens:
            return replace(self.scenario, seed=seed)
        options = replace(self.options, hash_tokens=hash_tokens)
        scenario = replace(scenario_of(self.spec, options), faults=self.scenario.faults, seed=seed)
        if scenario.prefix_cache is not PrefixCache.OFF:
            for worker in scenario.workers:
                scenario.piece_blocks(worker.kind)  # refuses before anything has run
        return scenario


def load_job(job: Job) -> LoadedJob:
    """Read a job's YAML and latencies, and check all that can be without its trace.

    Raises:
        SpecError: a line for each problem. Nothing was written.
    """
    file = read_cluster(job.spec_path)
    spec, shape = file.spec, _read_shape(file)
    latency = _latency_of(job, file)
    options = replace(job.scenario, profile=latency.profile, table=latency.table)
    scenario = scenario_of(spec, options)
    _check_model(file, shape, options, scenario)
    _check_goal_classes(job, spec)
    _check_trace_file(job.trace_path)
    faults = parse_faults(job.faults, [worker.worker_id for worker in scenario.workers])
    check_outputs(job.outputs, _inputs(job, spec))
    doubts = doubts_about(spec, options, latency)
    return LoadedJob(job, spec, options, replace(scenario, faults=faults), doubts)


def _read_shape(file: SpecFile) -> ModelShape:
    model = file.spec.model
    try:
        return load_shape(model.path, model.dtype, model.quantization)
    except SpecError as error:
        file.refuse([Problem(("model", "path"), str(error))])
        raise


def _latency_of(job: Job, file: SpecFile) -> Latency:
    """What --latency says, else the YAML's router.profile."""
    if job.latency_path is None and job.latency_rows is None:
        return Latency(profile=read_named_profile(file), told="router.profile")
    degrees = {pool.tensor_parallel for pool in file.spec.pools.by_role().values() if pool.workers}
    degree = job.scenario.tensor_parallel or (degrees.pop() if len(degrees) == 1 else 1)
    return read_latency(job.latency_path, job.latency_rows, degree)


def _check_model(file: SpecFile, shape: ModelShape, options: ScenarioOptions, scenario: Scenario) -> None:
    """What `twinpool check` refuses of a cluster and its model, with the KV memory that is simulated."""
    memory: float = file.spec.kv.memory
    if options.kv_memory == AUTO:
        kinds = [worker.kind for worker in scenario.workers]
        memory = min((kind.num_blocks * kind.block_tokens * kind.kv_token_bytes for kind in kinds), default=math.inf)
    elif options.kv_memory is not None:
        memory = int(options.kv_memory)
    spec = file.spec.model_copy(update={"kv": file.spec.kv.model_copy(update={"memory": memory})})
    problems = check_against_model(
        spec, kv_token_bytes=shape.kv_token_bytes, max_position_embeddings=shape.max_position_embeddings
    )
    file.refuse(problem for problem in problems if problem.path != ("kv", "memory") or options.kv_memory is None)
    for problem in problems:
        raise SpecError(f"--kv-memory: {problem.what}")


def _check_goal_classes(job: Job, spec: ClusterSpec) -> None:
    unknown = [name for name, _ in job.trace.goal_classes if name not in spec.goals]
    if unknown:
        known = ", ".join(sorted(spec.goals))
        raise SpecError(f"--goal-class: {', '.join(map(shown, unknown))} not among the YAML's goals: {known}")


def _check_trace_file(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SpecError(f"{path}: is no regular file, and a trace is read more than once: save it first")


def _inputs(job: Job, spec: ClusterSpec) -> list[Named]:
    profile = None if spec.router.profile is None else Path(spec.router.profile)
    named = [
        ("CLUSTER.yaml", job.spec_path),
        ("TRACE", job.trace_path),
        ("--latency", job.latency_path),
        ("router.profile", profile),
    ]
    return [(name, path) for name, path in named if path is not None]
