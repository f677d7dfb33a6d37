"""`twinpool simulate --sweep`: many rates, several seeds at each."""

from pathlib import Path

import pytest

from twinpool.cluster.simulate.table import sweep_lines

from .builders import files, run, run_json, told_at_fault


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict]:
    """The command's arguments, and what it found."""
    arguments = [*files(tmp_path_factory.mktemp("sweep")), "--requests", "40", "--seed", "5"]
    return arguments, run_json(*arguments, "--sweep", "rate=100:800")


def test_the_rate_found_is_the_largest_whose_mean_is_met_and_a_near_one_misses(swept):
    sweep = swept[1]["sweep"]
    kept = [point["rate_rps"] for point in sweep["points"] if point["slo_attainment"] >= 0.9]
    missed = [point["rate_rps"] for point in sweep["points"] if point["slo_attainment"] < 0.9]
    assert [point["rate_rps"] for point in sweep["points"] if point["is_met"]] == kept
    assert (max(kept), min(missed)) == (sweep["rate_rps"], sweep["missed_rps"])
    assert sweep["missed_rps"] <= sweep["rate_rps"] / 0.98
    assert sweep["is_bounded"]


def test_each_rate_has_the_mean_and_the_spread_of_its_seeds(swept):
    sweep = swept[1]["sweep"]
    assert sweep["seeds"] == [5, 6, 7]
    assert not sweep["is_one_draw"]
    for point in sweep["points"]:
        shares = [one["slo_attainment"] for one in point["runs"]]
        assert [one["seed"] for one in point["runs"]] == sweep["seeds"]
        assert point["slo_attainment"] == pytest.approx(sum(shares) / 3)
        assert (point["slo_attainment_least"], point["slo_attainment_most"]) == (min(shares), max(shares))
    assert len({one["ttft_s"]["p50"] for one in sweep["points"][-1]["runs"]}) == 3


def test_a_rate_of_the_table_and_a_seed_give_that_very_run(swept):
    arguments, values = swept
    point = values["sweep"]["points"][-1]
    for told in point["runs"][:2]:
        again = run_json(*arguments, "--rate", f"{point['rate_rps']:.4g}", "--seed", str(told["seed"]))
        assert {key: again[key] for key in told} == told


def test_the_report_is_that_of_the_first_seed_at_the_rate_found(swept):
    arguments, values = swept
    again = run_json(*arguments, "--rate", str(values["sweep"]["rate_rps"]))
    del values["sweep"]
    assert values == again


def test_a_sweep_prints_its_curve_its_rule_and_what_it_found(tmp_path: Path):
    printed = run(*files(tmp_path), "--requests", "30", "--sweep", "rate=10:20")
    assert "of each seed" in printed
    assert "20 requests/s, the highest, is still met for 90% or more: raise it (mean of seeds 0 to 2)" in printed
    assert "it nowhere rises by over 2 points" in printed
    assert "goodput/s is over the time until" in printed
    assert "small (1 prefill, 2 decode; slo) on t.csv, at 20 requests/s with seed 0" in printed


def test_one_seed_is_named_as_one(tmp_path: Path):
    printed = run(*files(tmp_path), "--requests", "30", "--sweep", "rate=10:10", "--seeds", "1")
    assert "(seed 0 alone: try --seeds 3)" in printed
    assert "of each seed" not in printed


def test_seeds_that_change_nothing_are_told(tmp_path: Path):
    trace = "Timestamp,Request tokens,Response tokens\n0,100,10\n1,100,10\n2,50,9\n"
    printed = run(*files(tmp_path, trace=trace), "--sweep", "rate=10:10")
    assert "every seed gave the same" in printed


def test_requests_that_only_a_later_seed_draws_are_refused_before_the_first_run(tmp_path: Path):
    trace = "prompt_tokens,output_tokens\n" + "10,5\n" * 60 + "5000,5\n"
    arguments = (*files(tmp_path, trace=trace), "--requests", "10")
    assert run_json(*arguments, "--rate", "10", "--seed", "10")["completed"] == 10
    told = told_at_fault(*arguments, "--sweep", "rate=10:10", "--seed", "10")
    assert ":62: has 5000 + 5 tokens" in told
    assert "seed" not in told  # of no run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--sweep", "rate=5"), "--sweep: 'rate=5' must be rate=LOW:HIGH"),
        (("--sweep", "rate=9:5"), "--sweep"),
        (("--sweep", "tokens=5:9"), "--sweep"),
        (("--sweep", "rate=nan:9"), "--sweep"),
        (("--sweep", "rate=5:9", "--rate", "3"), "--sweep: chooses rates itself"),
        (("--sweep", "rate=5:9", "--timeline", "t.json"), "--timeline: is of one run"),
        (("--sweep", "rate=5:50", "--requests", "20", "--warmup", "10"), "(at 5 requests/s, seed 0)"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, options: tuple[str, ...], told: str):
    said = told_at_fault(*files(tmp_path), *options)
    assert told in said
    assert "\n" not in said


def test_a_curve_that_rises_is_told():
    point = {"rate_rps": 1.0, "slo_attainment_least": 0.5, "slo_attainment_most": 0.59}
    sweep = {"rate_rps": None, "missed_rps": 1.0, "attainment": 0.999, "seeds": [3], "points": [point]}
    sweep |= {"is_one_draw": False}
    told = list(sweep_lines(sweep | {"is_monotone": False, "tolerance": 0.02}))
    assert told[0] == "even 1 requests/s, the lowest, is met for less than 99.9% (seed 3 alone: try --seeds 3)"
    assert told[1].startswith("attainment rises by over 2 points from one rate to the next")


def test_an_edge_where_seeds_disagree_is_told():
    points = [{"rate_rps": rate, "slo_attainment_least": 0.3, "slo_attainment_most": 0.95} for rate in (1.0, 2.0, 3.0)]
    points[0]["slo_attainment_least"] = 0.94
    sweep = {"rate_rps": 1.0, "missed_rps": 2.0, "attainment": 0.9, "seeds": [0, 1], "points": points}
    sweep |= {"is_one_draw": False, "is_bounded": True, "is_monotone": True, "tolerance": 0.02}
    assert "at this edge seeds differ by 65 points: stay below it" in list(sweep_lines(sweep))[1]
    points[1]["slo_attainment_least"] = 0.9
    assert not any("edge" in line for line in sweep_lines(sweep))
