"""Every benchmark once, with the smallest load: what it prints is complete and consistent. No test looks at a time."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.cluster.local_cluster import make_plan, running
from twinpool.cluster.bench.engine import ONE_BY_ONE, EngineOptions, bench_engine, compare, unequal
from twinpool.cluster.bench.engine import Round as EngineRound
from twinpool.cluster.bench.gateway import GatewayOptions, measure_turns, row_of
from twinpool.cluster.bench.generation import Generations, draw_prompts
from twinpool.cluster.bench.load import make_offers, offer_load
from twinpool.cluster.bench.measures import Ending
from twinpool.cluster.bench.pair import read_pair
from twinpool.cluster.bench.serve import load_options, measure_load
from twinpool.cluster.bench.serve import row_of as serve_row
from twinpool.core.errors import SpecError
from twinpool.core.spec_file import check_cluster
from twinpool.simulator.traces.lengths import Length

slow = pytest.mark.slow
MODEL = "{path: modelled:instant, max_model_len: 512}"
SPEC = f"""
name: split
model: {MODEL}
pools: {{prefill: {{workers: 1}}, decode: {{workers: 2}}}}
kv: {{memory: 1MiB}}
router: {{disaggregate: always}}
gateway: {{grpc_port: 0, http_port: 0}}
"""


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "twinpool.cluster.cli", "bench", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TWINPOOL_STATE_DIR": str(folder / "state")}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, cwd="/", env=environment(folder), timeout=180
    )


def load(rate: float = 100.0, **changes: Any) -> Any:
    values: dict[str, Any] = {"process": "poisson", "goal_ttft_s": 30.0, "goal_tpot_s": 30.0, "requests": 8}
    return load_options(rate, None, **(values | {"prompt_tokens": 20, "new_tokens": 5} | changes))


# --- engine -----------------------------------------------------------------------------------------------------------


def generations(tokens: list[list[int]], wall_s: float) -> Generations:
    return Generations(tokens, wall_s)


def test_a_row_of_the_engine_has_medians_and_says_whether_tokens_agree() -> None:
    tokens = [[1, 2, 3, 4], [5, 6, 7, 8]]
    other = [[1, 2, 3, 4], [5, 6, 0, 8]]
    rounds = [
        EngineRound(generations(tokens, wall_s), {ONE_BY_ONE: generations(theirs, 4.0)})
        for wall_s, theirs in ((1.0, tokens), (2.0, tokens), (8.0, other))
    ]
    row = compare(rounds, ONE_BY_ONE)
    assert (row["tokens_per_s"], row["peer_tokens_per_s"], row["ratio"]) == (4.0, 2.0, 2.0)
    assert (row["spread"], row["ratio_spread"]) == ({"min": 1.0, "max": 8.0}, {"min": 0.5, "max": 4.0})
    assert row["tokens_equal"] is False
    assert row["equal_tokens_share"] == (8 + 8 + 6) / 24
    told = {"model": "m", "dtype": "float32", "quantization": "none", "concurrency": 2} | row
    assert len(unequal([told, told | {"dtype": "bfloat16"}, told | {"quantization": "int8"}])) == 1
    assert unequal([told | {"tokens_equal": True}]) == []


def test_prompts_are_distinct_from_their_first_block_on() -> None:
    prompts = draw_prompts(np.random.default_rng(0), 64, 40, 512)
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 64
    assert {len(prompt) for prompt in prompts} == {40}
    assert all(type(token) is int and 0 <= token < 512 for prompt in prompts for token in prompt)


@slow
def test_engine_and_peer_answer_the_same_tokens() -> None:
    options = EngineOptions("dummy:tiny", "float32", concurrency=(1, 3), prompt_tokens=20, new_tokens=6, runs=1)
    rows = bench_engine(options)
    assert [(row["concurrency"], row["peer"]) for row in rows] == [
        (1, "transformers-generate"),
        (3, "transformers-generate"),
        (3, "transformers-generate-batched"),
    ]
    for row in rows:
        assert (row["model"], row["dtype"], row["threads"], row["runs"]) == ("dummy:tiny", "float32", 1, 1)
        assert row["tokens_equal"] is True
        assert row["ratio"] == pytest.approx(row["tokens_per_s"] / row["peer_tokens_per_s"])
        assert 0 < row["ttft_s"]["p50"] <= row["ttft_s"]["p99"]
    json.dumps(rows, allow_nan=False)


@slow
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "modelled:instant"}, "computes nothing"),
        ({"model": "dummy:none"}, "no such shape"),
        ({"model": "/nowhere"}, "no such model directory"),
        ({"prompt_tokens": 4096, "new_tokens": 1}, "over the model's 4096"),
        ({"model": "dummy:llama-3-70b", "concurrency": (1, 4096)}, "MiB of KV need .* this machine has .* free"),
    ],
)
def test_what_both_cannot_load_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        bench_engine(EngineOptions(**({"model": "dummy:tiny"} | changes)))


# --- serve ------------------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("pools", [{"prefill": 1, "decode": 1}, {"prefill": 0, "decode": 0, "mixed": 2}], ids=str)
def test_a_load_on_a_cluster_is_measured_at_the_client(pools: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with running(make_plan(**pools, worker={"model": "modelled:paced"})) as cluster:
            options = load()
            measured = await measure_load(cluster.addresses, options)
            row = serve_row(options, [measured, measured])
            assert (row["requests"], row["completed"], row["slo_attainment"]) == (16, 16, 1.0)
            assert row["tokens_per_s"] == pytest.approx(16 * 5 / row["wall_s"])
            assert row["goodput_rps_per_gpu"] == pytest.approx(row["goodput_rps"] / 2)
            assert sum(row["pools"].values()) == row["workers"] == 2
            for name in ("ttft_s", "tpot_s", "e2e_s", "itl_s"):
                assert 0 <= row[name]["p50"] <= row[name]["p90"] <= row[name]["p99"]
            json.dumps(row, allow_nan=False)
            await cluster.assert_idle()

    asyncio.run(scenario())


@slow
def test_what_still_runs_when_waiting_ends_is_cut_and_frees_the_cluster() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1, worker={"model": "modelled:paced"})) as cluster:
            lengths = (Length(10, 300), Length(10, 2))
            offers = make_offers(np.random.default_rng(0), np.zeros(4), lengths, 1000)
            outcomes, wall_s = await offer_load(cluster.client, offers, None, drain_s=1.0)
            assert [outcome.ending for outcome in outcomes] == [Ending.CUT, Ending.COMPLETED] * 2
            assert all(outcome.why for outcome in outcomes if outcome.ending is Ending.CUT)
            assert 0 < outcomes[0].num_tokens < 300
            assert wall_s >= 1.0
            await cluster.assert_idle()

    asyncio.run(scenario())


@slow
def test_refused_and_failed_requests_are_counted_as_offered() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            lengths = (Length(10, 5), Length(1_000, 5))  # the second is over the cluster's limit
            offers = make_offers(np.random.default_rng(0), np.linspace(0, 0.01, 6), lengths, 1000)
            outcomes, _ = await offer_load(cluster.client, offers, None, drain_s=30.0)
            assert [outcome.ending for outcome in outcomes] == [Ending.COMPLETED, Ending.FAILED] * 3
            await cluster.assert_idle()

    asyncio.run(scenario())


@slow
def test_a_load_too_long_for_the_model_is_refused_before_it_begins() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            with pytest.raises(SpecError, match="--prompt-tokens: 100000"):
                await measure_load(cluster.addresses, load(prompt_tokens=100_000))

    asyncio.run(scenario())


def test_offers_are_a_function_of_their_seed_and_distinct() -> None:
    def make() -> list[Any]:
        return make_offers(np.random.default_rng(3), np.arange(5.0), (Length(20, 4), Length(30, 2)), 1000)

    offers = make()
    assert offers == make()
    assert [(offer.due_s, len(offer.prompt), offer.new_tokens) for offer in offers] == [
        (0.0, 20, 4),
        (1.0, 30, 2),
        (2.0, 20, 4),
        (3.0, 30, 2),
        (4.0, 20, 4),
    ]
    assert len({tuple(offer.prompt[:8]) for offer in offers}) == 5


def test_a_load_without_bounds_lasts_half_a_minute() -> None:
    assert load_options(1.0, None, None, process="poisson", goal_ttft_s=1.0, goal_tpot_s=1.0).duration_s == 30.0
    assert load(requests=5).duration_s == math.inf


# --- compare ----------------------------------------------------------------------------------------------------------


def test_the_mixed_cluster_has_as_many_workers_and_differs_in_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(SPEC)
    split, mixed = read_pair(path)
    for values in (split, mixed):
        spec, problems = check_cluster(values)
        assert spec is not None, problems
    assert mixed["pools"]["mixed"]["workers"] == 3
    assert {name for name in split if split[name] != mixed[name]} == {"pools", "router"}
    assert mixed["router"] == split["router"] | {"disaggregate": "never"}


@pytest.mark.parametrize(
    ("pools", "told"),
    [
        ("{mixed: {workers: 2}}", "needs prefill and decode workers"),
        ("{prefill: {workers: 1, threads: 1}, decode: {workers: 1, threads: 2}}", "threads differs between pools"),
    ],
)
def test_a_cluster_that_mixed_workers_cannot_equal_is_refused(tmp_path: Path, pools: str, told: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: c\nmodel: {MODEL}\npools: {pools}\nkv: {{memory: 1MiB}}\n")
    with pytest.raises(SpecError, match=told):
        read_pair(path)


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_compare_brings_both_up_offers_both_the_same_and_leaves_nothing(
    tmp_path: Path, no_leaked_processes: None
) -> None:
    path, lengths = tmp_path / "c.yaml", tmp_path / "l.csv"
    path.write_text(SPEC)
    lengths.write_text("prompt_tokens,new_tokens\n30,4\n60,6\n")
    load = ("--rate", "50", "--requests", "10", "--lengths", str(lengths), "--goal-ttft", "30", "--goal-tpot", "30")
    done = run(tmp_path, "serve", "--compare", str(path), *load, "--json")
    assert done.returncode == 0, done.stderr
    mixed, split = json.loads(done.stdout)["results"]
    assert (mixed["mode"], split["mode"]) == ("mixed", "disaggregated")
    assert (mixed["pools"], split["pools"]) == ({"mixed": 3}, {"decode": 2, "prefill": 1})
    assert mixed["completed"] == split["completed"] == 10
    assert split["ratios"]["slo_attainment"] == 1.0
    assert split["ratios"]["ttft_s"]["p50"] == pytest.approx(split["ttft_s"]["p50"] / mixed["ttft_s"]["p50"])
    assert list((tmp_path / "state").iterdir()) == []


# --- gateway ----------------------------------------------------------------------------------------------------------


@slow
def test_gateway_and_echo_are_measured_at_the_same_pace(no_leaked_processes: None) -> None:
    async def scenario() -> None:
        async with running(make_plan(0, 0, mixed=1, worker={"model": "modelled:paced"})) as cluster:
            options = GatewayOptions(streams=4, connections=2, duration_s=0.5, runs=1, new_tokens=400)
            (turn,) = await measure_turns(cluster.addresses[0], options)
            for sample in (turn.gateway, turn.echo):
                assert sample.tokens >= sample.messages > 0
                assert sample.cpu_s >= 0
            row = row_of(options, [turn])
            assert (row["streams"], row["runs"]) == (4, 1)
            assert row["cores"] == pytest.approx(row["cores_per_1000_tokens_per_s"] * row["tokens_per_s"] / 1000)
            json.dumps(row, allow_nan=False)
            await cluster.assert_idle()

    asyncio.run(scenario())


@slow
def test_only_modelled_models_measure_a_gateway(tmp_path: Path) -> None:
    done = run(tmp_path, "gateway", "--model", "dummy:tiny")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not a modelled model" in done.stderr


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_ctrl_c_takes_down_what_was_started(tmp_path: Path, no_leaked_processes: None) -> None:
    arguments = command(tmp_path, "gateway", "--streams", "4", "--connections", "1", "--duration", "100")
    process = subprocess.Popen(
        arguments, cwd="/", env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    states: list[Path] = []
    while not states:  # the test's own timeout bounds it
        assert process.poll() is None, process.communicate()
        states = list((tmp_path / "state").glob("*.json"))
        time.sleep(0.1)
    supervisor = psutil.Process(json.loads(states[0].read_text())["supervisor_pid"])
    time.sleep(1.0)  # somewhere in the measurement
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in told
    supervisor.wait(30)  # its interpreter may still be ending
    assert list((tmp_path / "state").glob("*.json")) == []


# --- bad input --------------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("engine", "--concurrency", "1,x"), "must be whole numbers"),
        (("engine", "--deterministic", "--quantization", "int8"), "--deterministic"),
        (("serve", "--rate", "0"), "rate"),
        (("serve", "--rate", "nan"), "rate"),
        (("serve", "--rate", "1", "--cv", "2"), "--arrivals gamma"),
        (("serve", "--rate", "1", "--rounds", "3"), "--rounds is for --compare"),
        (("serve", "--rate", "1"), "no cluster is up here"),
        (("serve", "--rate", "1", "--compare", "/nowhere.yaml"), "no such file"),
        (("serve", "--rate", "1", "--compare", "/nowhere.yaml", "--address", "a:1"), "name none"),
        (("serve", "--rate", "1", "--lengths", "/nowhere.csv", "--address", "127.0.0.1:9"), "cannot be read"),
        (("gateway", "--streams", "2", "--connections", "3"), "--connections"),
    ],
)
def test_bad_input_is_told_without_a_traceback(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
