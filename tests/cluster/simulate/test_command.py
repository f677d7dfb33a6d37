"""`twinpool simulate` from its arguments to what it prints and writes."""

import json
from pathlib import Path

import pytest

from twinpool.cluster.profile_file import write_profile
from twinpool.core.errors import SpecError
from twinpool.router.estimate import LinearForm, LinkCost
from twinpool.router.latency_profile import KindProfile, LatencyProfile, link_part, part_of

from .builders import LENGTHS, YAML, files, run, run_json

LOAD = ("--rate", "10", "--duration", "12")
STABLE_KEYS = {
    *("requests", "completed", "rejected", "failed", "cut", "met", "slo_attainment", "goodput_rps"),
    *("goodput_rps_per_gpu", "ttft_s", "tpot_s", "itl_s", "e2e_s", "phases", "transfers", "requests_per_s"),
    *("tokens_per_s", "prompt_tokens_per_s", "utilisation", "cost", "energy", "duration_s", "by_class", "by_worker"),
    *("reasons", "attempts", "prefix_cache_hit_share", "over_time", "policy", "seed"),
}


def test_the_report_is_one_json_object_of_stable_keys(tmp_path: Path):
    values = run_json(*files(tmp_path), *LOAD)
    assert set(values) >= STABLE_KEYS
    assert set(values["ttft_s"]) == {"p50", "p90", "p99"}
    assert values["requests"] == values["completed"] > 80


def test_the_same_seed_gives_the_same_report_and_another_one_does_not(tmp_path: Path):
    arguments = (*files(tmp_path), *LOAD, "--noise", "0.1", "--json")
    assert run(*arguments) == run(*arguments)
    assert run(*arguments) != run(*arguments, "--seed", "1")


def test_every_request_that_is_offered_ends_once(tmp_path: Path):
    yaml = YAML.replace("workers: 2", "workers: 1") + "router: {max_queued: 0}\nkv: {memory: 40KB}\n"
    values = run_json(
        *files(tmp_path, yaml.replace("max_model_len: 1000", "max_model_len: 450")), "--rate", "60", "--duration", "5"
    )
    assert sum(values[name] for name in ("completed", "rejected", "failed", "cut")) == values["requests"]
    assert values["rejected"] > 0
    assert sum(values["reasons"].values()) == values["requests"] - values["completed"]


def test_the_tables_say_what_the_object_holds(tmp_path: Path):
    printed = run(*files(tmp_path), *LOAD, "--goal-class", "default=1,batch=1")
    for words in ("small (1 prefill, 2 decode; slo)", "met their goals", "TTFT", "queued", "prefill", "batch"):
        assert words in printed


def test_a_fault_shows_in_the_report(tmp_path: Path):
    values = run_json(*files(tmp_path), *LOAD, "--fault", "crash decode-1 at 5")
    assert values["events"]["crashed"] == 1
    assert values["completed"] == values["requests"]


def test_warm_up_and_cool_down_are_left_out(tmp_path: Path):
    whole = run_json(*files(tmp_path), *LOAD)
    part = run_json(*files(tmp_path), *LOAD, "--warmup", "3", "--cooldown", "3")
    assert 0 < part["requests"] < 0.75 * whole["requests"]
    assert part["duration_s"] == pytest.approx(6, abs=1)


def test_timeline_and_event_log_are_written(tmp_path: Path):
    timeline, log = tmp_path / "t.json", tmp_path / "e.txt"
    run(*files(tmp_path), *LOAD, "--timeline", str(timeline), "--timeline-requests", "5", "--event-log", str(log))
    events = json.loads(timeline.read_text())["traceEvents"]
    assert {event["name"] for event in events if event.get("cat") == "request"} >= {"queued", "prefill", "decode"}
    assert log.read_text().count("'ended'") > 80


def test_a_sweep_finds_a_rate_between_two_that_it_ran(tmp_path: Path):
    values = run_json(*files(tmp_path), "--requests", "80", "--sweep", "rate=50:800")
    sweep = values["sweep"]
    assert sweep["is_bounded"]
    kept = [point["rate_rps"] for point in sweep["points"] if point["slo_attainment"] >= 0.9]
    missed = [point["rate_rps"] for point in sweep["points"] if point["slo_attainment"] < 0.9]
    assert max(kept) == sweep["rate_rps"]
    assert min(missed) <= sweep["rate_rps"] / 0.98
    assert values["slo_attainment"] >= 0.9  # the report is that of the rate found


def test_a_sweep_prints_its_curve_and_what_it_found(tmp_path: Path):
    printed = run(*files(tmp_path), "--requests", "30", "--sweep", "rate=10:20")
    assert "20 requests/s, the highest, is still met for 90% or more: raise it" in printed
    assert "small (1 prefill, 2 decode; slo) on t.csv, at 20 requests/s" in printed


def test_a_trace_is_described_without_a_run(tmp_path: Path):
    values = run_json(*files(tmp_path), *LOAD, "--describe-trace")
    assert values["prompt_tokens"]["max"] == 400
    assert "ttft_s" not in values
    assert "prompt" in run(*files(tmp_path), *LOAD, "--describe-trace")


def test_requests_over_the_models_limit_are_refused_or_left_out(tmp_path: Path):
    arguments = files(tmp_path, trace=LENGTHS + "2000,10\n")
    with pytest.raises(SpecError, match=r"request \d+ has 2000 \+ 10 tokens, over model.max_model_len 1000"):
        run(*arguments, *LOAD)
    values = run_json(*arguments, *LOAD, "--skip-too-long")
    assert values["too_long"] > 0
    assert values["failed"] + values["rejected"] == 0


def test_a_profile_may_be_named_by_the_option_or_by_the_yaml(tmp_path: Path):
    form, link = part_of(LinearForm(prefill_a_s=0.5)), link_part(LinkCost())
    kind = KindProfile(role="prefill", kv_token_bytes=64, steps=form, link=link)
    kinds = {"prefill-tp1-pp1": kind}
    profile = LatencyProfile(version=1, model="m", machine="x", dtype="float32", message_s=0.001, kinds=kinds)
    write_profile(tmp_path / "p.json", profile)
    load = ("--rate", "1", "--duration", "9")
    by_option = run_json(*files(tmp_path), *load, "--latency", str(tmp_path / "p.json"))
    by_yaml = run_json(*files(tmp_path, YAML + "router: {profile: p.json}\n"), *load)
    assert by_yaml == by_option
    assert by_yaml["phases"]["prefill_s"]["p50"] > 0.4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--sweep", "rate=5"), "--sweep: 'rate=5' must be rate=LOW:HIGH"),
        (("--sweep", "rate=9:5"), "--sweep"),
        (("--sweep", "tokens=5:9"), "--sweep"),
        (("--sweep", "rate=5:9", "--rate", "3"), "--sweep: chooses rates itself"),
        (("--sweep", "rate=5:9", "--timeline", "t.json"), "--timeline: is of one run"),
        (("--sweep", "rate=5:50", "--requests", "20", "--warmup", "10"), "--warmup: at 5 requests/s nothing arrives"),
        ((*LOAD, "--warmup", "15", "--cooldown", "15"), "--warmup and --cooldown leave nothing"),
        ((*LOAD, "--policy", "best"), "--policy: 'best' is not one of"),
        ((*LOAD, "--fault", "crash decode-7 at 1"), "--fault: there is no worker 'decode-7'"),
        ((*LOAD, "--goal-class", "nobody"), "request 1 is of class 'nobody'; goals has batch, default"),
        ((*LOAD, "--kv-memory", "much"), "--kv-memory"),
        ((*LOAD, "--hardware", "gtx"), "--hardware: 'gtx' does not name one GPU"),
        ((*LOAD, "--latency", "/nowhere.json"), "/nowhere.json: cannot be read"),
        ((*LOAD, "--latency", "/nowhere.csv"), "--latency-rows: say which rows"),
        ((*LOAD, "--latency-rows", "a,b"), "--latency-rows: is for --latency FILE.csv"),
        ((*LOAD, "--timeline", "/nowhere/t.json"), "--timeline: /nowhere/t.json cannot be written"),
        (("--rate", "10", "--duration", "0.0001"), "t.csv"),
    ],
)
def test_bad_input_is_told_in_one_line_that_names_it(tmp_path: Path, options: tuple[str, ...], told: str):
    with pytest.raises(SpecError) as caught:
        run(*files(tmp_path), *options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
