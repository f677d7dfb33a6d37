"""The benchmark of the simulator: its runs, what a run tells, and what is refused. No test looks at a time."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from twinpool.cluster.bench.simulator import bench_simulator, cases
from twinpool.cluster.bench.simulator_command import Workload
from twinpool.cluster.bench.simulator_process import peak_rss_bytes, run_case
from twinpool.cluster.bench.simulator_workloads import AZURE_ANSWERS, AZURE_PROMPTS, DRAWN, Case
from twinpool.core.errors import SpecError
from twinpool.router.latency_table import OriginalRuleForm
from twinpool.router.roofline import RooflineForm
from twinpool.router.route import Policy

SMALL = Case("small", 2, 2, 10.0, 60)
HEADER = "model,hardware,prompt_size,batch_size,token_size,tensor_parallel,prompt_time,token_time"
POINTS = ("bloom-176b,a100-80gb,512,1,128,8,95,45", "bloom-176b,a100-80gb,512,64,128,8,7554,72")


@pytest.mark.parametrize("form", [AZURE_PROMPTS, AZURE_ANSWERS])
def test_drawn_lengths_have_the_published_mean_and_are_never_longer_than_what_was_seen(form):
    rng = random.Random(1)
    lengths = [form.draw(rng) for _ in range(20_000)]
    assert mean(lengths) == pytest.approx(form.mean, rel=0.04)  # the longest are cut
    assert min(lengths) >= 1
    assert max(lengths) <= form.most


def test_splitwise_is_two_minutes_of_120_a_second_on_40_machines():
    [case] = cases(Workload.SPLITWISE)
    assert (case.requests, case.rate_rps, case.workers) == (14_400, 120.0, 40)
    placement = case.scenario().placement
    assert placement.policy is Policy.LEAST_LOADED
    assert placement.mixed_pool


def test_azure1000_is_a_million_requests_on_a_thousand_workers():
    [case] = cases(Workload.AZURE1000)
    assert (case.requests, case.workers, len(case.scenario().workers)) == (1_000_000, 1000, 1000)
    assert case.scenario().placement.policy is Policy.SLO


def test_scaling_offers_every_worker_the_same_rate_however_many_there_are():
    found = cases(Workload.SCALING)
    assert len({case.rate_rps / case.workers for case in found}) == 1
    assert [case.requests for case in found if case.workers == 100] == [10_000, 100_000, 1_000_000, 10_000]
    assert all(case.requests <= 10_000 for case in cases(Workload.SCALING, 10_000))


def test_a_run_tells_what_became_of_every_request():
    row = run_case(SMALL)
    prompts = sum(offered.prompt_tokens for offered in SMALL.trace())
    answers = sum(offered.output_tokens for offered in SMALL.trace())
    assert (row["requests"], row["completed"], row["tokens"]) == (60, 60, prompts + answers)
    assert 0 < row["attainment"] <= 1
    assert row["lengths"] == DRAWN
    assert 0 < row["prefill_busy"] < 1
    assert row["peak_rss_bytes"] <= peak_rss_bytes()
    again = run_case(SMALL)
    assert (again["virtual_s"], again["events"]) == (row["virtual_s"], row["events"])
    assert run_case(replace(SMALL, seed=1))["virtual_s"] != row["virtual_s"]


def test_lengths_come_from_a_file_that_is_given(tmp_path: Path):
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,new_tokens\n30,4\n60,6\n")
    case = replace(SMALL, lengths=str(path))
    assert {offered.prompt_tokens for offered in case.trace()} == {30, 60}
    assert run_case(case)["lengths"] == str(path)


def test_step_times_come_from_a_table_that_is_given_and_else_from_a_roofline(tmp_path: Path):
    path = tmp_path / "perf_model.csv"
    path.write_text("\n".join((HEADER, *POINTS)) + "\n")
    [case] = cases(Workload.SPLITWISE)
    assert isinstance(case.scenario().workers[0].kind.truth, RooflineForm)
    kind = replace(case, perf_model=str(path)).scenario().workers[0].kind
    assert isinstance(kind.truth, OriginalRuleForm)
    assert kind.truth.seconds(512.0, 0.0, 0.0, 0.0) == pytest.approx(0.095)


def test_a_file_that_is_wrong_is_refused_before_anything_runs(tmp_path: Path):
    path = tmp_path / "bad.csv"
    path.write_text("prompt_tokens,new_tokens\n30,many\n")
    with pytest.raises(SpecError, match=r"bad\.csv:2"):
        bench_simulator(Workload.QUICK, 10, str(path), None, 0)


@pytest.mark.slow
def test_the_command_prints_one_object_with_a_row_for_each_run():
    command = [sys.executable, "-m", "twinpool.cluster.cli", "bench", "simulator", "--requests", "50", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    report = json.loads(done.stdout)
    assert report["command"] == "bench simulator"
    keys = {"workload", "policy", "requests", "tokens", "workers", "attainment", "wall_s", "requests_per_s"}
    for row in report["results"]:
        assert keys | {"peak_rss_bytes", "cpu_s", "events"} <= set(row)
        assert row["completed"] == row["requests"] == 50
