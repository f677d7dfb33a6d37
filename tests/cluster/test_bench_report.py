"""What every benchmark prints: one JSON object, or a table that a terminal can show."""

import json

import pytest

from twinpool.cluster.bench.compare import COLUMNS as COMPARE_COLUMNS
from twinpool.cluster.bench.report import envelope, print_report
from twinpool.cluster.bench.serve import COLUMNS as SERVE_COLUMNS


def test_the_envelope_names_command_machine_and_commit() -> None:
    report = envelope("bench engine", [{"ratio": 1.5}])
    assert set(report) == {"command", "machine", "commit", "results"}
    assert {"cpu", "cores", "memory_bytes", "python", "torch", "triton"} <= set(report["machine"])
    assert report["machine"]["cores"] >= 1
    assert report["commit"] is None or 6 < len(report["commit"]) < 41


def test_json_is_one_object_and_a_table_looks_into_nested_keys(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a", "ttft_s": {"p50": 0.25}, "ratio": None}]
    print_report("bench x", rows, ("name",), as_json=True)
    assert json.loads(capsys.readouterr().out)["results"] == rows
    print_report("bench x", rows, ("name", "ttft_s.p50", "ratio", "ttft_s.p99.none"), as_json=False)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["a", "0.25", "-", "-"]


def test_a_row_of_bench_serve_is_one_line_of_a_narrow_table(capsys: pytest.CaptureFixture[str]) -> None:
    times = {"p50": 0.123456, "p99": 1.23456}
    row = {"cluster": "demo", "pools": {"decode": 1, "prefill": 1}, "rate_rps": 2.0, "requests": 54, "completed": 54}
    row |= {"slo_attainment": 0.98765, "goodput_rps": 1.87654, "tokens_per_s": 123.456}
    row |= dict.fromkeys(("ttft_s", "tpot_s", "e2e_s"), times)
    row |= {"mode": "disaggregated", "ratios": {"goodput_rps": 1.0123, "ttft_s": times, "tpot_s": times}}
    for columns in (SERVE_COLUMNS, COMPARE_COLUMNS):
        print_report("bench serve", [row], columns, as_json=False)
        *_, header, line = capsys.readouterr().out.splitlines()
        assert "decode 1, prefill 1" in line
        assert max(len(header.rstrip()), len(line.rstrip())) <= 150
