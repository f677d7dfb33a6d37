"""One run of `twinpool bench simulator`, in a process of its own, so that the peak of memory is this run's alone.

Knows how a run is timed; not which runs there are.
"""

import gc
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twinpool.cluster.bench.simulator_workloads import DRAWN, Case
from twinpool.simulator.cluster import SimulatedCluster, simulate
from twinpool.simulator.observer import Observer, Steps
from twinpool.simulator.outcome import Ending, Outcome

Values = dict[str, Any]


class Totals(Observer):
    """Sums of all that ended, and of the time that workers computed while requests came."""

    def __init__(self, requests: int) -> None:
        self.num_to_come = requests
        self.completed = self.met = self.tokens = 0
        self.last_arrival_s = 0.0
        self.busy_s: defaultdict[int, float] = defaultdict(float)
        self.held_block_s: defaultdict[int, float] = defaultdict(float)

    def offered(self, index: int, at_s: float) -> None:  # noqa: ARG002
        self.num_to_come -= 1
        self.last_arrival_s = at_s

    def stepped(self, steps: Steps) -> None:
        if self.num_to_come:  # what follows is the cluster running empty
            self.busy_s[steps.worker] += steps.ended_s - steps.started_s
            self.held_block_s[steps.worker] += (steps.ended_s - steps.started_s) * steps.held_blocks

    def ended(self, outcome: Outcome) -> None:
        self.completed += outcome.ending is Ending.COMPLETED
        self.met += outcome.met
        self.tokens += outcome.num_tokens + outcome.offered.prompt_tokens * (outcome.first_token_s is not None)


def run_case(case: Case) -> Values:
    """Run it from beginning to end, trace included, and say what it took.

    Raises:
        SpecError: a file that it names is wrong.
    """
    scenario, trace, totals = case.scenario(), case.trace(), Totals(case.requests)
    gc.freeze()  # what is imported stays: a collection need not look at it again
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    cluster = simulate(scenario, trace, [totals])
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    cluster.check()
    return {
        "workload": case.workload,
        "policy": str(scenario.placement.policy),
        "requests": case.requests,
        "workers": case.workers,
        "rate_rps": case.rate_rps,
        "tokens": totals.tokens,
        "completed": totals.completed,
        "attainment": totals.met / case.requests,
        **_loads(case, cluster, totals),
        "virtual_s": cluster.world.now,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "cpu_us_per_request": cpu_s / case.requests * 1e6,
        "requests_per_s": case.requests / wall_s,
        "events": cluster.world.num_events,
        "peak_rss_bytes": peak_rss_bytes(),
        "lengths": DRAWN if case.lengths is None else case.lengths,
    }


def _loads(case: Case, cluster: SimulatedCluster, totals: Totals) -> Values:
    """How busy workers were while requests came: prefill by time, decode by time and by KV held."""
    span_s = totals.last_arrival_s or 1.0
    prefill, decode = range(case.prefill_workers), range(case.prefill_workers, case.workers)
    blocks = sum(cluster.processes[place].engine.pool.num_blocks for place in decode)
    return {
        "prefill_busy": sum(totals.busy_s[place] for place in prefill) / span_s / len(prefill),
        "decode_busy": sum(totals.busy_s[place] for place in decode) / span_s / len(decode),
        "decode_kv_held": sum(totals.held_block_s[place] for place in decode) / span_s / blocks,
    }


def peak_rss_bytes() -> int:
    """Of this process since it began its program; getrusage would count who started it, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def as_argument(case: Case) -> str:
    """What this program is called with."""
    return json.dumps(asdict(case))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_case(Case(**json.loads(sys.argv[1])))) + "\n")
