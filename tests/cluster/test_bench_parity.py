"""`twinpool bench parity`: what both sides are offered, how they are compared, and one small run of everything."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from twinpool.cluster.bench.commands import app
from twinpool.cluster.bench.parity_numbers import compare, is_within, middle_of, numbers_of, spread_of
from twinpool.cluster.bench.parity_simulated import find_knee, run_simulated
from twinpool.cluster.bench.parity_trace import Lengths, draw_trace
from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal, Role
from twinpool.router.estimate import LinearForm
from twinpool.simulator.scenario import GoalClass, Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.trace import TraceRequest

LENGTHS = Lengths((10, 100), (2, 20))


def scenario(goal: Goal, step_s: float = 10e-3) -> Scenario:
    """Two workers whose steps take equally long; what the network takes is the default."""
    form = LinearForm(step_s, 0.0, 0.0, step_s, 0.0, 0.0)
    kind = WorkerKind("only", form, kv_token_bytes=64, num_blocks=10_000, block_tokens=16)
    workers = tuple(SimulatedWorker(f"{role}-0", role, kind) for role in (Role.PREFILL, Role.DECODE))
    return Scenario(workers=workers, goals={"default": GoalClass(goal)})


@given(seed=st.integers(0, 2**32), rate=st.floats(1.0, 100.0))
def test_a_trace_is_a_function_of_its_seed_and_within_its_lengths(seed: int, rate: float) -> None:
    trace = draw_trace(LENGTHS, rate, 5.0, seed)
    assert trace == draw_trace(LENGTHS, rate, 5.0, seed)
    assert all(10 <= each.prompt_tokens <= 100 and 2 <= each.output_tokens <= 20 for each in trace)
    assert [each.arrival_s for each in trace] == sorted(each.arrival_s for each in trace)


def test_requests_are_the_same_at_every_rate() -> None:
    slow, fast = draw_trace(LENGTHS, 5.0, 10.0, 0), draw_trace(LENGTHS, 20.0, 10.0, 0)
    assert [each.prompt_tokens for each in slow] == [each.prompt_tokens for each in fast[: len(slow)]]


def test_lengths_are_as_often_below_their_middle_as_above() -> None:
    trace = draw_trace(LENGTHS, 200.0, 20.0, 0)
    below = Counter(each.prompt_tokens < LENGTHS.middle_prompt for each in trace)[True]
    assert below / len(trace) == pytest.approx(0.5, abs=0.05)


def run(p50: float, attainment: float = 1.0) -> dict[str, object]:
    both = {"p50": p50, "p90": 2 * p50}
    return {"ttft_s": both, "tpot_s": {"p50": None, "p90": None}, "slo_attainment": attainment}


def test_runs_are_told_by_their_median_and_spread() -> None:
    runs = [run(1.0, 1.0), run(2.0, 0.9), run(1.5, 0.95)]
    assert middle_of(runs) == {
        "ttft_s": {"p50": 1.5, "p90": 3.0},
        "tpot_s": {"p50": None, "p90": None},
        "slo_attainment": 0.95,
    }
    spread = spread_of(runs)
    assert spread["ttft_s"]["p50"] == pytest.approx(1 / 1.5)
    assert spread["slo_attainment"] == pytest.approx(10.0)


def test_differences_are_relative_to_the_live_cluster() -> None:
    live = numbers_of([1.0, 1.0], [0.1, 0.1], met=8, offered=10)
    near = compare(live, numbers_of([1.04, 1.04], [0.097, 0.097], met=10, offered=12))
    assert near["ttft_s"]["p50"] == pytest.approx(0.04)
    assert near["tpot_s"]["p90"] == pytest.approx(-0.03)
    assert near["slo_attainment"] == pytest.approx(100 * (10 / 12 - 0.8))
    assert not is_within(near)  # attainment is 3.3 points apart
    assert is_within(compare(live, numbers_of([1.04], [0.097], met=81, offered=100)))
    assert not is_within(compare(live, numbers_of([1.06], [0.1], met=80, offered=100)))
    assert not is_within(compare(live, numbers_of([], [], met=80, offered=100)))


def test_a_client_sees_both_its_ways_to_the_gateway() -> None:
    trace = draw_trace(LENGTHS, 5.0, 10.0, 0)
    near, far = (run_simulated(scenario(Goal(1.0, 1.0)), trace, client_s) for client_s in (0.0, 0.25))
    assert far["ttft_s"]["p50"] == pytest.approx(near["ttft_s"]["p50"] + 0.5)
    assert far["tpot_s"]["p50"] == pytest.approx(near["tpot_s"]["p50"])
    assert run_simulated(scenario(Goal(0.1, 1.0)), trace, 0.25)["slo_attainment"] == 0.0


def test_the_knee_is_where_the_prefill_worker_is_full() -> None:
    """Steps of 50 ms take up to 512 tokens: about 13 prompts of 39 on average, 260 a second."""

    def draw(rate_rps: float) -> list[TraceRequest]:
        return draw_trace(LENGTHS, rate_rps, 60.0, 0, requests=300)

    assert 100 < find_knee(scenario(Goal(0.2, 0.5), 50e-3), draw) < 500
    with pytest.raises(SpecError, match="knee"):
        find_knee(scenario(Goal(1e-3, 0.5), 50e-3), draw)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pools", "1"],
        ["--pools", "0+1"],
        ["--pools", "1+1,"],
        ["--policies", "best"],
        ["--loads", "0"],
        ["--loads", "nan"],
        ["--shape", "modelled:none"],
        ["--part", "engine", "--model", "/nowhere"],
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["parity", *arguments])
    assert isinstance(done.exception, SpecError)
    assert arguments[-2].removeprefix("--").rstrip("s") in str(done.exception) or arguments[-1] in str(done.exception)


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_run_has_both_sides_of_the_same_trace(tmp_path: Path, no_leaked_processes: None) -> None:
    """In a process of its own, as a supervisor outlives whoever started it."""
    done = subprocess.run([sys.executable, "-c", SMALL_RUN, str(tmp_path)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["live_completed"] == [row["requests"]] * 2
    assert row["simulated"]["completed"] == row["requests"] > 0
    assert row["rate_rps"] == pytest.approx(0.1 * row["knee_rps"])
    assert row["difference"] == compare(row["live"], row["simulated"])
    assert row["client_s"] >= 0
    assert list(tmp_path.iterdir()) == []


SMALL_RUN = """
import dataclasses, json, pathlib, sys
from twinpool.cluster.bench.parity import ParityOptions, bench_parity
from twinpool.cluster.bench.parity_subjects import modelled
from twinpool.cluster.bench.parity_trace import Lengths
from twinpool.cluster.profile.command import ProfileOptions
from twinpool.cluster.state import StateFolder
from twinpool.core.messages import Goal

subject = modelled("modelled:paced")
subject = dataclasses.replace(subject, lengths=Lengths((64, 128), (8, 16)), goal=Goal(0.5, 0.5))
profile = ProfileOptions(grid_s=1.5, rounds=1, repeats=1, quick=True)
options = ParityOptions(((1, 1),), ("slo",), (0.1,), runs=2, duration_s=1.5, profile=profile, knee_requests=400)
folder = StateFolder(pathlib.Path(sys.argv[1]))
print(json.dumps(bench_parity(subject, options, folder, lambda told: None)))
"""
