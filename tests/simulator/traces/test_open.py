"""A file of requests is known by its first line, checked before it is played, and played the same at every turn."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal
from twinpool.simulator.trace import TraceRequest
from twinpool.simulator.traces.open import open_trace, trace_options
from twinpool.simulator.traces.options import Format
from twinpool.simulator.traces.request_log import LoggedRequest, to_line

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def write(folder: Path, content: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def azure(folder: Path, seconds: list[float]) -> Path:
    """Request i has 10 + i prompt tokens."""
    rows = [f"2023-11-16 18:{int(at // 60):02}:{at % 60:010.7f},{10 + i},{1 + i}" for i, at in enumerate(seconds)]
    return write(folder, "\r\n".join([AZURE, *rows]))


def mooncake(folder: Path, times_ms: list[int], ids: list[int]) -> Path:
    lines = [
        json.dumps({"timestamp": at, "input_length": 512 * len(ids), "output_length": 2, "hash_ids": ids})
        for at in times_ms
    ]
    return write(folder, "\n".join(lines), "trace.jsonl")


def play(path: Path, **options: Any) -> list[TraceRequest]:
    trace = open_trace(path, trace_options(**options))
    requests = list(trace)
    assert list(trace) == requests
    assert all(earlier.arrival_s <= later.arrival_s for earlier, later in pairwise(requests))
    return requests


def times(requests: list[TraceRequest]) -> list[float]:
    return [round(request.arrival_s, 6) for request in requests]


def refusal(path: Path, **options: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        open_trace(path, trace_options(**options))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (f"{AZURE}\r\n2023-11-16 18:15:46.6805900,10,2\r\n", Format.AZURE),
        (f"\ufeff{AZURE}\n2024-05-10 00:00:00+00:00,10,2\n", Format.AZURE),
        (f"{BURSTGPT}\n5,ChatGPT,10,2,12,API log\n", Format.BURSTGPT),
        (f"{BURSTGPT.replace(',', ',Session ID,Elapsed time,', 1)}\n5.0,u,3,GPT-4,10,2,12,API log\n", Format.BURSTGPT),
        ('{"timestamp": 3, "input_length": 10, "output_length": 2, "hash_ids": [4]}\n', Format.MOONCAKE),
        ("prompt_tokens,output_tokens\n10,2\n", Format.LENGTHS),
        ("num_prefill_tokens,num_decode_tokens\n10,2\n", Format.LENGTHS),
        ('{"prompt_tokens": 10, "new_tokens": 2}\n', Format.LENGTHS),
        (to_line(LoggedRequest(1e9, 0.0, 10, 2, 2, "default", Goal(1, 1), "completed")), Format.REQUEST_LOG),
    ],
)
def test_a_format_is_known_by_its_first_line(tmp_path: Path, content: str, kind: Format) -> None:
    path = write(tmp_path, content, "file.txt")
    options = {"rate_rps": 1.0} if kind is Format.LENGTHS else {}
    trace = open_trace(path, trace_options(**options))
    assert trace.format is kind
    assert [(request.prompt_tokens, request.output_tokens) for request in trace] == [(10, 2)]
    named = open_trace(path, trace_options(format=str(kind), **options))
    assert list(named) == list(trace)


@pytest.mark.parametrize("content", ["a,b\n1,2\n", '{"a": 1}\n', "{\n", "[1]\n", "x" * 500])
def test_a_file_in_no_known_format_is_refused_with_its_first_line(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    (only,) = refusal(path)
    assert only.startswith(f"{path}:1: is no header or line of a format that is known (azure, mooncake")


def test_files_without_requests_are_refused(tmp_path: Path) -> None:
    assert "holds no request" in refusal(write(tmp_path, ""))[0]
    assert "holds no request" in refusal(write(tmp_path, AZURE))[0]
    assert "holds no request" in refusal(write(tmp_path, f"{BURSTGPT}\n5,GPT-4,10,0,10,API log\n"))[0]
    assert "cannot be read: No such file" in refusal(tmp_path / "none")[0]


def test_times_begin_at_the_first_request(tmp_path: Path) -> None:
    assert times(play(azure(tmp_path, [7.25, 8.0, 8.0, 70.5]))) == [0.0, 0.75, 0.75, 63.25]


def test_rows_within_the_window_are_put_in_order_and_later_ones_are_refused(tmp_path: Path) -> None:
    requests = play(azure(tmp_path, [5.0, 3.0, 4.0]))
    assert [(request.arrival_s, request.prompt_tokens) for request in requests] == [(0.0, 11), (1.0, 12), (2.0, 10)]
    path = azure(tmp_path, [*(5.0 + i / 100 for i in range(1100)), 1.0])
    (only,) = refusal(path)
    assert only.startswith(f"{path}:1102: is out of order: it comes before line 77, over 1024 lines up")


def test_bad_lines_are_told_before_anything_is_played(tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join([AZURE, "2023-11-16 18:00:00,5,5", "2023-11-16 18:00:01,x,5", "", "never,5,5"]))
    for options in ({}, {"arrivals": "poisson", "rate_rps": 1.0}):
        lines = refusal(path, **options)
        assert [line.split(" ")[0] for line in lines] == [f"{path}:3:", f"{path}:5:"]
    path = write(tmp_path, "\n".join([AZURE, *["2023-11-16 18:00:00,x,5"] * 25]))
    lines = refusal(path)
    assert len(lines) == 21
    assert lines[-1] == f"{path}: and 5 more bad lines"


def test_a_line_that_goes_bad_after_the_check_ends_the_playing(tmp_path: Path) -> None:
    path = azure(tmp_path, [float(i) / 10 for i in range(3000)])
    trace = open_trace(path)
    content = path.read_bytes().split(b"\r\n")
    content[2500] = b"2023-11-16 18:04:10,x,1"
    path.write_bytes(b"\r\n".join(content))
    played: list[TraceRequest] = []

    def go() -> None:
        for request in trace:
            played.append(request)

    with pytest.raises(SpecError, match=f"{path}:2501: ContextTokens must be"):
        go()
    assert len(played) < 2500


def test_lines_behind_what_is_played_are_not_looked_at(tmp_path: Path) -> None:
    path = azure(tmp_path, [float(i) / 10 for i in range(3000)])
    path.write_bytes(path.read_bytes() + b"\r\nbad,bad,bad")
    assert len(play(path, requests=10)) == 10
    assert len(play(path, duration_s=5.0)) == 50
    assert "3002" in refusal(path, requests=10, rate_rps=3.0)[0]  # the mean rate is the whole file's


def test_failed_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = ["4,GPT-4,10,0,10,API log", "5,GPT-4,11,3,14,API log", "6,GPT-4,12,0,12,API log", "8,GPT-4,13,1,14,API log"]
    trace = open_trace(write(tmp_path, "\n".join([BURSTGPT, *rows])))
    assert [(request.arrival_s, request.prompt_tokens) for request in trace] == [(0.0, 11), (3.0, 13)]
    assert trace.num_skipped == 2


def test_batches_of_equal_times_keep_their_order_and_their_names(tmp_path: Path) -> None:
    requests = play(mooncake(tmp_path, [0, 0, 3000], [5, 6]))
    assert times(requests) == [0.0, 0.0, 3.0]
    assert {(request.prefix_hashes, request.hash_tokens) for request in requests} == {((5, 6), 512)}


def test_scale_stretches_time_and_rate_sets_its_mean(tmp_path: Path) -> None:
    path = azure(tmp_path, [0.0, 1.0, 4.0])  # 2 gaps in 4 s: a mean rate of 0.5
    assert times(play(path, scale=0.5)) == [0.0, 0.5, 2.0]
    assert times(play(path, rate_rps=2.0)) == [0.0, 0.25, 1.0]
    assert times(play(path, rate_rps=2.0, duration_s=1.0)) == [0.0, 0.25]
    assert times(play(path, requests=2)) == [0.0, 1.0]
    assert "come at once" in refusal(azure(tmp_path, [1.0, 1.0]), rate_rps=2.0)[0]


def test_a_repeated_trace_goes_on_after_one_mean_gap_and_shares_no_prefix_with_itself(tmp_path: Path) -> None:
    path = mooncake(tmp_path, [0, 1000, 4000], [5, 6])
    requests = play(path, repeat=True, requests=7)
    assert times(requests) == [0.0, 1.0, 4.0, 6.0, 7.0, 10.0, 12.0]
    rounds = [{request.prefix_hashes for request in requests[i : i + 3]} for i in (0, 3, 6)]
    assert [len(names) for names in rounds] == [1, 1, 1]
    assert len({name for names in rounds for hashes in names for name in hashes}) == 6
    assert len(play(path, repeat=True, duration_s=60.0)) == 30
    assert times(play(path, repeat=True, duration_s=60.0, rate_rps=5.0))[3] == 0.6
    assert "come at once" in refusal(mooncake(tmp_path, [7, 7], [1]), repeat=True, requests=9)[0]


def test_arrivals_are_drawn_where_there_are_none_or_others_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt_tokens,output_tokens\n" + "".join(f"{i},{i}\n" for i in range(1, 201)))
    assert len(play(path, rate_rps=5.0)) == 200
    assert times(play(path, rate_rps=4.0, arrivals="constant", requests=3)) == [0.25, 0.5, 0.75]
    assert len(play(path, step="10@0,40@60", duration_s=120.0)) == pytest.approx(3000, rel=0.1)
    own = azure(tmp_path, [0.0, 50.0])
    assert len(play(own, rate_rps=10.0, arrivals="gamma", cv=2.0, duration_s=100.0)) == pytest.approx(1000, rel=0.2)


def test_lengths_are_drawn_as_rows_or_each_on_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt_tokens,output_tokens\n" + "".join(f"{i},{i}\n" for i in range(1, 101)))
    joint = play(path, rate_rps=1.0, requests=5000)
    assert all(request.prompt_tokens == request.output_tokens for request in joint)
    apart = play(path, rate_rps=1.0, requests=5000, independent=True)
    assert sum(request.prompt_tokens == request.output_tokens for request in apart) < 200
    for requests in (joint, apart):
        assert len({request.prompt_tokens for request in requests}) == 100
        assert sum(request.output_tokens for request in requests) / 5000 == pytest.approx(50.5, rel=0.05)


def test_another_rate_or_arrival_changes_no_lengths_and_another_seed_changes_all(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt_tokens,output_tokens\n" + "".join(f"{i},{i}\n" for i in range(1, 101)))

    def lengths(**options: Any) -> list[int]:
        return [request.prompt_tokens for request in play(path, requests=50, **options)]

    assert lengths(rate_rps=1.0) == lengths(rate_rps=9.0) == lengths(rate_rps=1.0, arrivals="constant")
    assert lengths(rate_rps=1.0) != lengths(rate_rps=1.0, seed=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "--rate: has to say how many"),
        ({"rate_rps": 1.0, "repeat": True, "requests": 5}, "--repeat: "),
        ({"scale": 2.0}, "--scale: "),
        ({"rate_rps": 1.0, "cv": 2.0}, "--cv: is for --arrivals gamma"),
    ],
)
def test_options_that_make_no_sense_for_drawn_arrivals_are_refused(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    path = write(tmp_path, "prompt_tokens,output_tokens\n1,1\n")
    assert refusal(path, **options)[0].startswith(told)


def test_drawing_each_on_its_own_needs_drawing(tmp_path: Path) -> None:
    assert refusal(azure(tmp_path, [0.0, 1.0]), independent=True)[0].startswith("--independent: ")


def test_goal_classes_are_the_files_or_drawn_by_weight(tmp_path: Path) -> None:
    path = azure(tmp_path, [float(i % 60) for i in sorted(range(60)) for _ in range(50)])
    assert Counter(request.goal_class for request in play(path)) == {"default": 3000}
    assert Counter(request.goal_class for request in play(path, goal_class="chat")) == {"chat": 3000}
    drawn = Counter(request.goal_class for request in play(path, goal_class="chat=3,batch=1"))
    assert set(drawn) == {"chat", "batch"}
    assert drawn["chat"] == pytest.approx(2250, rel=0.05)
    line = to_line(LoggedRequest(1e9, 0.0, 10, 2, 5, "own", Goal(1, 1), "completed", tenant="t"))
    (logged,) = play(write(tmp_path, line))
    assert (logged.goal_class, logged.tenant, logged.max_tokens) == ("own", "t", 5)


def test_a_clients_limit_is_never_under_the_answers_length(tmp_path: Path) -> None:
    path = azure(tmp_path, [0.0, 1.0, 2.0])  # answers of 1, 2 and 3 tokens
    assert [request.max_tokens for request in play(path)] == [0, 0, 0]
    assert [request.max_tokens for request in play(path, max_tokens=2)] == [2, 2, 3]


def test_a_request_log_is_put_in_order_of_arrival(tmp_path: Path) -> None:
    lines = [
        to_line(LoggedRequest(1e9 + at, at, 10 + at, 2, 2, "default", Goal(1, 1), "completed")) for at in (5, 0, 3)
    ]
    requests = play(write(tmp_path, "".join(lines)))
    assert [(request.arrival_s, request.prompt_tokens) for request in requests] == [(0.0, 10), (3.0, 13), (5.0, 15)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 4000))
def test_cutting_takes_a_beginning(tmp_path: Path, times_ms: list[int], most: int, end_ms: int) -> None:
    path = mooncake(tmp_path, times_ms, [1])
    whole = play(path)
    assert times(whole) == [(at - min(times_ms)) / 1000 for at in sorted(times_ms)]
    short = play(path, requests=most, duration_s=end_ms / 1000)
    assert short == [request for request in whole if request.arrival_s < end_ms / 1000][:most]


def test_a_trace_is_streamed(tmp_path: Path) -> None:
    path = mooncake(tmp_path, [0, 1000], [1])
    stream: Iterator[TraceRequest] = iter(open_trace(path, trace_options(repeat=True, requests=10**12)))
    assert len(list(islice(stream, 5000))) == 5000


@pytest.mark.slow
def test_traces_need_nothing_heavy() -> None:
    code = "import twinpool.simulator.traces.open, twinpool.simulator.traces.describe, sys\n"
    code += "print([name for name in ('grpc', 'pydantic', 'ray', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
