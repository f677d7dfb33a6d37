"""`twinpool bench parity`: the same trace through a live cluster and through the simulator, and how far they differ.

Knows the order of the measurements; each side runs by itself, and parity_numbers.py compares them.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twinpool.cluster.bench.parity_live import LiveCluster
from twinpool.cluster.bench.parity_numbers import Values, compare, is_within, middle_of, spread_of
from twinpool.cluster.bench.parity_simulated import find_knee, make_scenario, run_simulated
from twinpool.cluster.bench.parity_trace import Lengths, draw_trace
from twinpool.cluster.bench.report import Column
from twinpool.cluster.own_cluster import own_cluster
from twinpool.cluster.profile.command import ProfileOptions, profile_cluster
from twinpool.cluster.profile_file import write_profile
from twinpool.cluster.state import StateFolder
from twinpool.core.messages import Goal
from twinpool.core.spec_file import load_cluster
from twinpool.router.latency_profile import LatencyProfile
from twinpool.simulator.trace import TraceRequest

KNEE_TRACE_S = 60.0
COLUMNS: tuple[Column, ...] = (
    *("part", "pools", "policy", ("rate_rps", "rate/s"), ("load", "of knee")),
    *(("live.ttft_s.p50", "TTFT p50 live"), ("simulated.ttft_s.p50", "sim"), ("difference.ttft_s.p50", "diff")),
    *(("difference.ttft_s.p90", "p90 diff"), ("live_spread.ttft_s.p90", "runs")),
    *(("live.tpot_s.p50", "TPOT p50 live"), ("simulated.tpot_s.p50", "sim"), ("difference.tpot_s.p50", "diff")),
    *(("difference.tpot_s.p90", "p90 diff"), ("live_spread.tpot_s.p90", "runs")),
    *(("live.slo_attainment", "met live"), ("difference.slo_attainment", "points"), "within"),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compared under one name: a model, its goals and the lengths of its requests."""

    part: str
    values: Values  # of the cluster's YAML, but for pools and policy
    lengths: Lengths
    goal: Goal


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """How much is measured."""

    pools: tuple[tuple[int, int], ...] = ((1, 1), (2, 2))
    policies: tuple[str, ...] = ("slo", "least_loaded")
    loads: tuple[float, ...] = (0.5, 0.8)  # of the knee
    runs: int = 3
    duration_s: float = 20.0
    seed: int = 0
    profile: ProfileOptions = field(default_factory=lambda: ProfileOptions.of(quick=True))
    knee_requests: int = 3000  # of the traces that the knee is looked for with, at most


def bench_parity(
    subject: Subject, options: ParityOptions, folder: StateFolder, tell: Callable[[str], None]
) -> list[Values]:
    """Profile the subject's workers, then compare: a row for each of pools, policy and load.

    Raises:
        SpecError: a cluster cannot start, or the goals leave no knee. Nothing is left running.
    """
    rows = list[Values]()
    with tempfile.TemporaryDirectory(prefix="twinpool-parity-") as temporary:
        home = Path(temporary)
        profile = _profile(subject, home, options.profile, lambda told: tell(f"{subject.part}: {told}"))
        for pools in options.pools:
            for policy in options.policies:
                tell(f"{subject.part}: {pools[0]}+{pools[1]} workers, {policy}")
                rows += _compare(_Case(subject, pools, policy, profile, home), options, folder)
    return rows


def _profile(subject: Subject, home: Path, options: ProfileOptions, tell: Callable[[str], None]) -> LatencyProfile:
    path = home / "cluster.yaml"
    path.write_text(json.dumps({**subject.values, "name": "parity", "pools": _pools((1, 1))}))
    profile = profile_cluster(path, options, tell).profile
    write_profile(home / "profile.json", profile)
    return profile


def _pools(pools: tuple[int, int]) -> Values:
    return {"prefill": {"workers": pools[0], "threads": 1}, "decode": {"workers": pools[1], "threads": 1}}


@dataclass(frozen=True, slots=True)
class _Case:
    """One cluster."""

    subject: Subject
    pools: tuple[int, int]
    policy: str
    profile: LatencyProfile
    home: Path

    def values(self) -> Values:
        goal = self.subject.goal
        router = {"policy": self.policy, "disaggregate": "always", "profile": str(self.home / "profile.json")}
        goals = {"default": {"ttft_s": goal.ttft_s, "tpot_s": goal.tpot_s}}
        return {**self.subject.values, "pools": _pools(self.pools), "router": router, "goals": goals}


def _compare(case: _Case, options: ParityOptions, folder: StateFolder) -> Iterator[Values]:
    path = case.home / "case.yaml"
    path.write_text(json.dumps({**case.values(), "name": "parity"}))
    scenario = make_scenario(load_cluster(path), case.profile, options.seed)
    draw = partial(draw_trace, case.subject.lengths, seed=options.seed + 1, requests=options.knee_requests)
    knee_rps = find_knee(scenario, lambda rate_rps: draw(rate_rps, KNEE_TRACE_S))
    with own_cluster(case.values(), f"bench-{os.getpid()}-parity", folder) as state:
        live = LiveCluster(state.grpc)
        asyncio.run(live.warm_up(case.subject.lengths.prompt_tokens[0]))
        client_s = asyncio.run(live.measure_way(case.subject.lengths.middle_prompt))
        for load in options.loads:
            trace = draw_trace(case.subject.lengths, load * knee_rps, options.duration_s, options.seed)
            runs = [asyncio.run(live.run(trace, case.subject.goal, (options.seed, n))) for n in range(options.runs)]
            simulated = run_simulated(scenario, trace, client_s)
            yield _row(case, options, load, knee_rps, trace, runs, simulated) | {"client_s": client_s}


def _row(
    case: _Case,
    options: ParityOptions,
    load: float,
    knee_rps: float,
    trace: Sequence[TraceRequest],
    runs: Sequence[Values],
    simulated: Values,
) -> Values:
    live = middle_of(runs)
    difference = compare(live, simulated)
    fit: dict[str, Any] = {
        name: {region: error.p90 for region, error in kind.fit_errors.items()}
        for name, kind in case.profile.kinds.items()
    }
    return {
        "part": case.subject.part,
        "model": case.subject.values["model"]["path"],
        "pools": f"{case.pools[0]}+{case.pools[1]}",
        "policy": case.policy,
        "knee_rps": knee_rps,
        "load": load,
        "rate_rps": load * knee_rps,
        "requests": len(trace),
        "duration_s": options.duration_s,
        "runs": len(runs),
        "live": live,
        "live_spread": spread_of(runs),
        "simulated": simulated,
        "difference": difference,
        "within": is_within(difference),
        "live_completed": [run["completed"] for run in runs],
        "send_lag_s_p90": [run["send_lag_s_p90"] for run in runs],
        "fit_errors_p90": fit,
        "message_s": case.profile.message_s,
        "engine_s": {name: {"send": kind.send_s, "join": kind.join_s} for name, kind in case.profile.kinds.items()},
    }
