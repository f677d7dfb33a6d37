"""`twinpool simulate` from its arguments to what it prints and writes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinpool.cluster.cli import app
from twinpool.cluster.profile_file import write_profile
from twinpool.router.estimate import LinearForm, LinkCost
from twinpool.router.latency_profile import KindProfile, LatencyProfile, link_part, part_of

from .builders import LENGTHS, YAML, files, run, run_json, told_at_fault

LOAD = ("--rate", "10", "--duration", "12")
STABLE_KEYS = {
    *("requests", "completed", "rejected", "failed", "cut", "met", "slo_attainment", "goodput_rps"),
    *("goodput_rps_per_gpu", "ttft_s", "tpot_s", "itl_s", "e2e_s", "phases", "transfers", "requests_per_s"),
    *("tokens_per_s", "prompt_tokens_per_s", "utilisation", "cost", "energy", "duration_s", "by_class", "by_worker"),
    *("reasons", "attempts", "prefix_cache_hit_share", "over_time", "policy", "seed", "doubts", "never_happened"),
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
    assert values["never_happened"] == []


def test_a_fault_after_the_last_request_never_happened(tmp_path: Path):
    faults = ("--fault", "crash decode-1 at 5", "--fault", "crash decode-0 at 5000")
    values = run_json(*files(tmp_path), *LOAD, *faults)
    assert values["events"] == {"crashed": 1}
    assert values["never_happened"] == ["crash decode-0 at 5000"]
    told = run(*files(tmp_path), *LOAD, *faults)
    assert "never happened, as the last request had ended: crash decode-0 at 5000" in told


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


def test_a_trace_is_described_without_a_run_and_without_a_cluster(tmp_path: Path):
    cluster, trace = files(tmp_path)
    values = run_json(cluster, trace, *LOAD, "--describe-trace")
    assert values["prompt_tokens"]["max"] == 400
    assert "ttft_s" not in values
    assert "requests (lengths) in" in run(trace, *LOAD, "--describe-trace")


def test_lengths_are_described_without_a_rate(tmp_path: Path):
    trace = files(tmp_path)[1]
    values = run_json(trace, "--describe-trace")
    assert (values["requests"], values["duration_s"], values["output_tokens"]["max"]) == (3, None, 40)
    assert "3 requests (lengths), with no times of their own: --rate draws them" in run(trace, "--describe-trace")


def test_requests_over_the_models_limit_are_refused_by_line_or_left_out(tmp_path: Path):
    arguments = files(tmp_path, trace=LENGTHS + "2000,10\n10,2000\n")
    line = "t.csv:{}: has {} tokens, over model.max_model_len 1000; see --skip-too-long"
    told = sorted(told_at_fault(*arguments, *LOAD).splitlines())
    assert [one.rpartition("/")[2] for one in told] == [line.format(5, "2000 + 10"), line.format(6, "10 + 2000")]
    values = run_json(*arguments, *LOAD, "--skip-too-long")
    assert values["too_long"] > 0
    assert values["failed"] + values["rejected"] == 0


def test_a_trace_of_which_nothing_is_left_is_refused(tmp_path: Path):
    arguments = files(tmp_path, trace="prompt_tokens,output_tokens\n2000,10\n")
    told = told_at_fault(*arguments, "--rate", "10", "--requests", "4", "--skip-too-long")
    assert "nothing is left to run: over model.max_model_len, and left out: 4" in told


def test_classes_that_the_log_names_and_the_yaml_does_not_are_told_by_line(tmp_path: Path):
    wrong = ((2, "'chat'"), (3, "'mail'"))
    line = {"twinpool_request_log": 1, "arrival_unix_s": 5, "prompt_tokens": 9, "output_tokens": 2, "max_tokens": 2}
    lines = [json.dumps(line | {"goal_class": name}) for name in ("batch", "chat", "mail")]
    told = told_at_fault(*files(tmp_path, trace="\n".join(lines))).splitlines()
    lines = [f"t.csv:{number}: is of class {name}; goals has batch, default" for number, name in wrong]
    assert [one.rpartition("/")[2] for one in told] == lines


def test_rare_requests_take_no_longer_than_frequent_ones(tmp_path: Path):
    values = run_json(*files(tmp_path), "--rate", "1e-6", "--requests", "20")
    assert values["completed"] == 20
    assert values["duration_s"] > 1e6
    assert values["waiting"]["in_flight"]["mean"] < 1e-5


def test_what_check_refuses_of_the_model_is_refused_with_its_line(tmp_path: Path):
    yaml = YAML.replace("max_model_len: 1000", "max_model_len: 16000000")
    assert "c.yaml:2: model.max_model_len: 16000000 is over the model's" in told_at_fault(*files(tmp_path, yaml), *LOAD)
    arguments = files(tmp_path, YAML + "kv: {memory: 20KB}\n")
    assert "c.yaml:5: kv.memory: 20000 bytes hold 304 tokens" in told_at_fault(*arguments, *LOAD)
    assert "--kv-memory: 20000 bytes hold 304 tokens" in told_at_fault(*files(tmp_path), *LOAD, "--kv-memory", "20KB")


def test_an_idle_pool_is_told(tmp_path: Path):
    arguments = files(tmp_path, YAML + "router: {disaggregate: never}\n")
    told = "pools.prefill: its workers (1) will be idle, as router.disaggregate is never"
    assert run_json(*arguments, *LOAD)["doubts"] == [told]
    assert f"twinpool: {told}\n" in CliRunner().invoke(app, ["simulate", *arguments, *LOAD]).stderr


def test_a_profile_may_be_named_by_the_option_or_by_the_yaml(tmp_path: Path):
    form, link = part_of(LinearForm(prefill_a_s=0.5)), link_part(LinkCost())
    kind = KindProfile(role="prefill", kv_token_bytes=64, steps=form, link=link)
    kinds = {"prefill-tp1-pp1": kind}
    profile = LatencyProfile(version=1, model="m", machine="x", dtype="float32", message_s=0.001, kinds=kinds)
    write_profile(tmp_path / "p.json", profile)
    load = ("--rate", "1", "--duration", "9")
    by_option = run_json(*files(tmp_path), *load, "--latency", str(tmp_path / "p.json"))
    by_yaml = run_json(*files(tmp_path, YAML + "router: {profile: p.json}\n"), *load)
    assert by_yaml.pop("doubts")[0].startswith("router.profile: step times of m on x")
    assert by_option.pop("doubts")[0].startswith("--latency: step times of m on x")
    assert by_yaml == by_option
    assert by_yaml["phases"]["prefill_s"]["p50"] > 0.4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((*LOAD, "--warmup", "15", "--cooldown", "15"), "--warmup and --cooldown leave no request of"),
        ((*LOAD, "--warmup", "15"), "--warmup and --cooldown leave no request of"),
        ((*LOAD, "--policy", "best"), "--policy: 'best' is not one of"),
        ((*LOAD, "--fault", "crash decode-7 at 1"), "--fault: there is no worker 'decode-7'"),
        ((*LOAD, "--goal-class", "nobody"), "--goal-class: 'nobody' not among the YAML's goals: batch, default"),
        ((*LOAD, "--kv-memory", "much"), "--kv-memory"),
        ((*LOAD, "--hardware", "gtx"), "--hardware: 'gtx' does not name one GPU"),
        ((*LOAD, "--latency", "/nowhere.json"), "/nowhere.json: cannot be read"),
        ((*LOAD, "--latency", "/nowhere.csv"), "--latency-rows: say which rows"),
        ((*LOAD, "--latency-rows", "a,b"), "--latency-rows: is for --latency FILE.csv"),
        ((*LOAD, "--timeline", "/proc/nowhere/t.json"), "--timeline: /proc/nowhere/t.json cannot be written"),
        ((*LOAD, "--max-tokens", "0"), "--max-tokens: must be a whole number from 1 to"),
        (("--rate", "10", "--duration", "0.0001"), "t.csv"),
        (("--rate", "1e-9"), "s as it is played; 1e+09 s is the most: raise the rate"),
    ],
)
def test_bad_input_is_told_in_one_line_that_names_it(tmp_path: Path, options: tuple[str, ...], told: str):
    said = told_at_fault(*files(tmp_path), *options)
    assert told in said
    assert "\n" not in said


def test_a_missing_trace_and_one_that_can_be_read_once_only_are_refused(tmp_path: Path):
    cluster = files(tmp_path)[0]
    assert told_at_fault(cluster) == "TRACE: is missing: a file of requests, after CLUSTER.yaml"
    assert "/dev/null: is no regular file" in told_at_fault(cluster, "/dev/null")
