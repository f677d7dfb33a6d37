"""`twinpool bench transfer` with the smallest requests: rows are complete and consistent. No test looks at a time."""

import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from twinpool.cluster.bench.commands import app
from twinpool.cluster.bench.transfer import TransferOptions, bench_transfer
from twinpool.cluster.bench.transfer_codecs import codec_errors
from twinpool.cluster.bench.transfer_process import running
from twinpool.core.errors import Internal, SpecError
from twinpool.model.kv_layout import KVLayout

slow = pytest.mark.slow
LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, block_tokens=16, head_dim=64, dtype="bfloat16", model="bench")
CONTRACT = {
    *("link", "codec", "digest", "streaming", "source_tp", "target_tp", "limiter", "bytes", "gb_per_s"),
    *("raw_gb_per_s", "fraction_of_raw", "beyond_wire_ms_p50", "hidden_share"),
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twinpool.cluster.cli", "bench", "transfer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)


@slow
def test_every_case_has_a_row_that_is_consistent(no_leaked_processes: None) -> None:
    told: list[str] = []
    options = TransferOptions(
        LAYOUT,
        (8 * LAYOUT.block_bytes, 2 * LAYOUT.block_bytes),
        codecs=("raw", "int8"),
        limits=(None, 200_000_000),
        chunk_tokens=32,
        layers_per_group=2,
        computes=True,
        runs=1,
    )
    before = threading.active_count()
    rows = bench_transfer([options], told.append)
    assert threading.active_count() == before
    assert [sentence.partition(":")[0] for sentence in told] == ["not measured"] * 2  # shm coded, and shm limited
    seen = [(row["link"], row["codec"], row["limiter"], row["digest"], row["streaming"], row["bytes"]) for row in rows]
    assert len(set(seen)) == len(rows) == 2 * 2 * 2 * (2 * 2 + 1)
    for row in rows:
        assert set(row) >= CONTRACT
        assert (row["source_tp"], row["target_tp"], row["runs"], row["prefill"]) == (1, 1, 1, "computes")
        assert row["fraction_of_raw"] == pytest.approx(row["gb_per_s"] / row["raw_gb_per_s"])
        assert row["fraction_spread"]["min"] <= row["fraction_spread"]["max"]
        assert 0 < row["wire_ms_p50"] < row["handover_ms_p50"]
        assert row["beyond_wire_ms_p50"] > 0
        assert (row["digest_ratio"] is None) == (not row["digest"])
        assert row["descriptors"]["groups"] == (row["bytes"] // LAYOUT.block_bytes if row["streaming"] else 1)
        assert (row["ratio_to_raw_codec"] is None) == (row["codec"] == "raw")
        if row["limiter"] is not None:
            limited_s = row["bytes"] / row["limiter"]
            assert row["raw_ms_p50"] >= 1e3 * limited_s * (1 - 1e-9)
            assert math.isclose(row["raw_gb_per_s"], row["bytes"] / row["raw_ms_p50"] / 1e6)
    json.dumps(rows, allow_nan=False)


@slow
def test_workers_of_several_ranks_have_rows_for_every_codec_and_link(no_leaked_processes: None) -> None:
    shapes = ((1, 2), (4, 2))  # of two heads: four ranks hold each twice
    options = TransferOptions(
        LAYOUT,
        (4 * LAYOUT.block_bytes,),
        codecs=("raw", "int8"),
        digests=(True,),
        shapes=shapes,
        chunk_tokens=32,
        layers_per_group=2,
        runs=1,
    )
    limited = replace(options, links=("gloo",), limits=(100_000_000,), shapes=((2, 2),), streaming=(False,))
    before = threading.active_count()
    rows = bench_transfer([options, limited], [].append)
    assert threading.active_count() == before
    seen = [(row["link"], row["codec"], row["source_tp"], row["target_tp"], row["streaming"]) for row in rows]
    assert len(set(seen)) == len(rows) == 2 * (2 + 1) * 2 + 2
    for row in rows:
        assert set(row) >= CONTRACT
        assert row["descriptors"]["links"] == max(row["source_tp"], row["target_tp"])
        assert row["handover_ms_p50"] > row["wire_ms_p50"] > 0


@slow
def test_raw_kv_changes_no_token_of_the_demo_model_and_coarse_codecs_err_more() -> None:
    errors = codec_errors(("raw", "int8", "int2"))
    assert {error["model"] for error in errors.values()} == {"examples/models/tiny"}
    assert (errors["raw"]["changed_share"], errors["raw"]["max_logprob_error"]) == (0.0, 0.0)
    assert 0 < errors["int8"]["mean_logprob_error"] < errors["int2"]["mean_logprob_error"]
    assert errors["int2"]["coded_bytes"] < errors["int8"]["coded_bytes"] < errors["raw"]["raw_bytes"]


@slow
def test_the_command_prints_one_object_and_says_what_is_not_there(no_leaked_processes: None) -> None:
    shape = ("--layers", "4", "--kv-heads", "2", "--head-dim", "64", "--dtype", "float32")
    less = ("--bytes", "-", "--tokens", "64", "--streaming", "on", "--digest", "on", "--runs", "1")
    done = bench("--link", "cuda_ipc,shm", *shape, *less, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["command"] == "bench transfer"
    (row,) = report["results"]
    assert (row["link"], row["bytes"], row["tokens"]) == ("shm", 64 * 4 * 2 * 2 * 64 * 4, 64)
    assert row["codec_error"] is None
    told = [line.split(": ")[1:3] for line in done.stderr.splitlines()]
    assert told == [["not measured", "cuda_ipc"]]


@slow
def test_bad_input_is_one_line_and_exit_code_2() -> None:
    done = bench("--codec", "gzip", "--link", "gloo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "twinpool: --codec: 'gzip' is not one of raw, int8, fp8, int4, int2 or all\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--link tcp", "--link: 'tcp' is not one of gloo, shm, nccl, cuda_ipc or all"),
        ("--codec int4 --head-dim 7 --link gloo", "--codec: "),
        ("--bytes 1GB1 --link gloo", "--bytes: must be a size"),
        ("--bytes - --tokens 0 --link gloo", "--bytes: no size is left"),
        ("--limit-bytes-per-s 5 --link gloo", "--limit-bytes-per-s: 5 is under"),
        ("--produced-bytes-per-s fast --link gloo", "--produced-bytes-per-s: must be a size"),
        ("--bytes 1TiB --link gloo", "--bytes: pools"),
        ("--tp 1:3 --link gloo", "--tp: 8 KV heads and tensor_parallel 3"),
        ("--tp two --link gloo", "--tp: must be ranks"),
        ("--full --codec raw", "--full: chooses codecs, sizes, limits and ranks itself"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(arguments: str, told: str) -> None:
    refused = CliRunner().invoke(app, ["transfer", *arguments.split()]).exception
    assert isinstance(refused, SpecError)
    assert str(refused).startswith(told)


@pytest.mark.parametrize("arguments", ["--tokens 17", "--runs 0", "--streaming maybe", "--layers 0", "--prefill"])
def test_options_out_of_range_are_refused(arguments: str) -> None:
    assert CliRunner().invoke(app, ["transfer", *arguments.split()]).exit_code == 2


@pytest.mark.parametrize("arguments", ["--link nccl", "--link cuda_ipc", "--link shm --codec int8"])
def test_when_nothing_can_be_measured_the_command_fails(arguments: str) -> None:
    refused = CliRunner().invoke(app, ["transfer", *arguments.split()]).exception
    assert isinstance(refused, Internal)
    assert str(refused) == "nothing that was asked for can be measured here"


@slow
def test_a_process_that_dies_fails_the_bench(no_leaked_processes: None) -> None:
    setup = {"layout": {**layout_values(), "dtype": "float12"}, "num_blocks": 1}
    with pytest.raises(Internal, match="the source process is gone"), running(("source",), setup):
        raise AssertionError("it cannot make such a pool")


def layout_values() -> dict[str, Any]:
    return {name: getattr(LAYOUT, name) for name in LAYOUT.__slots__}
