"""Each format's line becomes one request, and a line that is none says which of its fields is wrong."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.messages import Goal
from twinpool.simulator.traces import azure, burstgpt, mooncake, request_log
from twinpool.simulator.traces.counts import BadLine
from twinpool.simulator.traces.entry import Entry
from twinpool.simulator.traces.request_log import LoggedRequest, to_line

SECOND_NS = 10**9
LOGGED = LoggedRequest(
    arrival_unix_s=1_700_000_000.25,
    arrival_s=12.5,
    prompt_tokens=200,
    output_tokens=7,
    max_tokens=16,
    goal_class="chat",
    goal=Goal(1.0, 0.05),
    ending="completed",
    tenant="t",
    hash_tokens=64,
    prefix_hashes=(2**64 - 1, 5, 0),
)


def azure_row(time: str = "2023-11-16 18:15:46.6805900", prompt: str = "374", output: str = "44") -> dict[str, str]:
    return {"TIMESTAMP": time, "ContextTokens": prompt, "GeneratedTokens": output}


def burst_row(time: str = "5", prompt: str = "472", output: str = "18") -> dict[str, str]:
    return {
        "Timestamp": time,
        "Model": "GPT-4",
        "Request tokens": prompt,
        "Response tokens": output,
        "Log Type": "API log",
    }


def mooncake_row(**values: Any) -> dict[str, Any]:
    return {"timestamp": 27, "input_length": 1100, "output_length": 3, "hash_ids": [0, 7, 9]} | values


def log_row(logged: LoggedRequest = LOGGED, **values: Any) -> dict[str, Any]:
    return json.loads(to_line(logged)) | values


@pytest.mark.parametrize(
    ("text", "after_ns"),
    [
        ("2023-11-16 18:15:46.6805900", 680_590_000),
        ("2023-11-16T18:15:46.6805900Z", 680_590_000),
        ("2023-11-16 18:15:46", 0),
        ("2023-11-16 18:15:46+00:00", 0),
        ("2023-11-16 18:15:46.000017+00:00", 17_000),
        ("2023-11-16 20:15:46.5+02:00", 500_000_000),
        ("2023-11-16 18:15:46.123456789", 123_456_789),
    ],
)
def test_an_azure_time_is_exact_with_or_without_fraction_and_zone(text: str, after_ns: int) -> None:
    assert azure.read_timestamp(text) == 1_700_158_546 * SECOND_NS + after_ns


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2023-13-16 18:15:46", "2023-11-16 18:61:46", "2023-11-16", "1700158546.5", None, 17]
)
def test_what_is_no_azure_time_is_refused_as_it_stands(text: object) -> None:
    with pytest.raises(BadLine, match="TIMESTAMP must be a time such as"):
        azure.read_timestamp(text)


def test_rows_without_an_answer_are_left_out() -> None:
    assert azure.read_entry(azure_row(output="0")) is None
    assert burstgpt.read_entry(burst_row(output="0")) is None
    assert burstgpt.read_entry(burst_row(prompt="0", output="0")) is None
    assert mooncake.read_entry(mooncake_row(output_length=0)) is None
    assert request_log.read_entry(log_row(replace(LOGGED, output_tokens=0, ending="rejected"))) is None


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (azure_row(prompt="0"), "ContextTokens must be a whole number from 1"),
        (azure_row(output="1.5"), "GeneratedTokens must be a whole number from 0"),
        ({"TIMESTAMP": "2023-11-16 18:15:46", "ContextTokens": "5"}, "GeneratedTokens"),
    ],
)
def test_bad_azure_rows_name_their_column(row: dict[str, str], told: str) -> None:
    with pytest.raises(BadLine, match=told):
        azure.read_entry(row)


@pytest.mark.parametrize(
    ("text", "ns"), [("5", 5 * SECOND_NS), ("110.5", 110_500_000_000), ("19440110.0", 19440110 * SECOND_NS)]
)
def test_a_burstgpt_row_is_read_in_seconds(text: str, ns: int) -> None:
    assert burstgpt.read_entry(burst_row(text)) == Entry(ns, 472, 18)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (burst_row("-1"), "Timestamp must be a time"),
        (burst_row("1e5"), "Timestamp must be a time"),
        (burst_row("nan"), "Timestamp must be a time"),
        (burst_row(prompt="0"), "Request tokens must be"),
        (burst_row(output="x"), "Response tokens must be"),
    ],
)
def test_bad_burstgpt_rows_name_their_column(row: dict[str, str], told: str) -> None:
    with pytest.raises(BadLine, match=told):
        burstgpt.read_entry(row)


def test_a_mooncake_line_keeps_the_names_of_full_pieces() -> None:
    entry = mooncake.read_entry(mooncake_row())
    assert entry == Entry(27_000_000, 1100, 3, prefix_hashes=(0, 7), hash_tokens=512)
    assert mooncake.read_entry(mooncake_row(input_length=1024, hash_ids=[4, 2])) == Entry(
        27_000_000, 1024, 3, prefix_hashes=(4, 2), hash_tokens=512
    )
    bare = mooncake_row()
    del bare["hash_ids"]
    assert mooncake.read_entry(bare) == Entry(27_000_000, 1100, 3)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"hash_ids": [0, 7]}, "hash_ids has 2 pieces, and 1100 tokens make 3 of 512"),
        ({"hash_ids": [0, 7, 9, 11]}, "hash_ids has 4 pieces"),
        ({"hash_ids": [0, 7, "9"]}, "hash_ids must be a list of whole numbers"),
        ({"hash_ids": [0, True, 9]}, "hash_ids must be a list"),
        ({"hash_ids": "079"}, "hash_ids must be a list"),
        ({"timestamp": -1}, "timestamp must be a time"),
        ({"timestamp": float("nan")}, "timestamp must be a time"),
        ({"timestamp": True}, "timestamp must be a time"),
        ({"input_length": 10.0}, "input_length must be a whole number"),
        ({"output_length": None}, "output_length must be a whole number"),
    ],
)
def test_bad_mooncake_lines_name_their_key(values: dict[str, Any], told: str) -> None:
    with pytest.raises(BadLine, match=told):
        mooncake.read_entry(mooncake_row(**values))


def test_what_is_logged_is_what_is_read() -> None:
    entry = request_log.read_entry(log_row())
    assert entry == Entry(
        1_700_000_000_250_000_000, 200, 7, 16, "chat", "t", prefix_hashes=LOGGED.prefix_hashes, hash_tokens=64
    )


@given(
    st.floats(0, 4e9),
    st.integers(1, 2**20),
    st.integers(1, 2**10),
    st.integers(0, 2**10),
    st.text(max_size=128),
    st.data(),
)
def test_every_logged_request_reads_back(
    at_s: float, prompt: int, output: int, more: int, name: str, data: st.DataObject
) -> None:
    hashes = tuple(data.draw(st.lists(st.integers(0, 2**64 - 1), max_size=min(4, prompt // 64))))
    logged = replace(
        LOGGED,
        arrival_unix_s=at_s,
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=output + more,
        goal_class=name,
        prefix_hashes=hashes,
        hash_tokens=64 if hashes else 0,
    )
    line = to_line(logged)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    entry = request_log.read_entry(json.loads(line))
    assert entry is not None
    assert abs(entry.at_ns / 1e9 - at_s) < 2e-6
    assert entry[1:-1] == (prompt, output, output + more, name, "t", hashes, 64 if hashes else 0)


@given(st.lists(st.floats(1e9, 9e9), max_size=8))
def test_lines_of_several_logs_sorted_as_text_are_in_order_of_arrival(times: list[float]) -> None:
    lines = sorted(to_line(replace(LOGGED, arrival_unix_s=at_s)) for at_s in times)
    assert [json.loads(line)["arrival_unix_s"] for line in lines] == sorted(round(at_s, 6) for at_s in times)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"twinpool_request_log": 2}, "twinpool_request_log must be 1"),
        ({"arrival_unix_s": None}, "arrival_unix_s must be a time"),
        ({"max_tokens": 6}, "output_tokens 7 is over max_tokens 6"),
        ({"goal_class": 5}, "goal_class must be text"),
        ({"tenant": "x" * 129}, "tenant must be text"),
        ({"prefix_hashes": "00ff"}, "prefix_hashes must be a list"),
        ({"prefix_hashes": ["0x5"]}, "prefix_hashes must be a list"),
        ({"prefix_hashes": ["f" * 17]}, "prefix_hashes must be a list"),
        ({"hash_tokens": 0}, "hash_tokens must be a whole number"),
        ({"hash_tokens": 100}, "prefix_hashes has 3 pieces of 100, over 200 prompt tokens"),
    ],
)
def test_bad_lines_of_a_request_log_name_their_key(values: dict[str, Any], told: str) -> None:
    with pytest.raises(BadLine, match=told):
        request_log.read_entry(log_row(**values))
