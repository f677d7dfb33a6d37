"""How fast the simulator is: workloads of several sizes, each run in a process of its own.

Knows which runs a workload has, and nothing of what happens in one.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from twinpool.cluster.bench.simulator_command import Workload
from twinpool.cluster.bench.simulator_process import as_argument
from twinpool.cluster.bench.simulator_workloads import Case
from twinpool.core.errors import Internal

Values = dict[str, Any]
COLUMNS = (
    "workload",
    "policy",
    "requests",
    "workers",
    ("attainment", "met"),
    "prefill_busy",
    "wall_s",
    "cpu_s",
    ("cpu_us_per_request", "us/request"),
    "requests_per_s",
    "peak_rss_bytes",
)
FLEET_RPS = 9.0  # for each prefill worker of the fleet: over 70 % of what it can do
SPLITWISE_RPS, SPLITWISE_S = 120.0, 120.0


def cases(workload: Workload, requests: int | None = None) -> list[Case]:
    """The runs of a workload. ``requests`` makes each as long as that, or what grows in `scaling` that long at most."""
    match workload:
        case Workload.SPLITWISE:
            found = [_splitwise(round(SPLITWISE_RPS * SPLITWISE_S))]
        case Workload.AZURE1000:
            found = [_fleet(Workload.AZURE1000, 1000, 1_000_000)]
        case Workload.QUICK:
            found = [replace(_splitwise(1000), workload="quick"), _fleet(Workload.QUICK, 10, 1000)]
        case Workload.SCALING:
            return list(_scaling(requests or 1_000_000))
    return found if requests is None else [replace(case, requests=requests) for case in found]


def _splitwise(requests: int) -> Case:
    return Case("splitwise", 22, 18, SPLITWISE_RPS, requests, is_splitwise=True)


def _fleet(workload: Workload, workers: int, requests: int) -> Case:
    return Case(str(workload), workers // 2, workers // 2, FLEET_RPS * (workers // 2), requests)


def _scaling(most: int) -> Iterator[Case]:
    """More requests on 100 workers, then more workers that get as many requests each."""
    for requests in (10_000, 100_000, 1_000_000):
        if requests <= most:
            yield _fleet(Workload.SCALING, 100, requests)
    for workers in (10, 100, 1000):
        if 100 * workers <= most:
            yield _fleet(Workload.SCALING, workers, 100 * workers)


def bench_simulator(
    workload: Workload, requests: int | None, lengths: str | None, perf_model: str | None, seed: int
) -> list[Values]:
    """Run a workload, one case after the other.

    Raises:
        Internal: a run failed; what it wrote to standard error says why.
        SpecError: a file is wrong. Nothing was run.
    """
    wanted = [replace(case, lengths=lengths, perf_model=perf_model, seed=seed) for case in cases(workload, requests)]
    for case in wanted:  # which reads the files
        case.scenario()
        case.trace()
    return [_run(case) for case in wanted]


def _run(case: Case) -> Values:
    command = [sys.executable, "-m", "twinpool.cluster.bench.simulator_process", as_argument(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise Internal(f"the run of {case.requests} requests on {case.workers} workers failed ({done.returncode})")
    values: Values = json.loads(done.stdout)
    return values
