"""A request log loses no line to a slow or full disk without a word, and is a whole number of lines at any time."""

import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from twinpool.cluster.request_log import MAX_WAITING, RequestLog, path_of_replica
from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal
from twinpool.simulator.traces.open import open_trace
from twinpool.simulator.traces.request_log import LoggedRequest, to_line

LOGGED = LoggedRequest(1e9, 0.0, 10, 2, 2, "default", Goal(1, 1), "completed")


@contextmanager
def opened(path: Path) -> Iterator[RequestLog]:
    log = RequestLog(str(path))
    try:
        yield log
    finally:
        log.close()


def numbered(count: int) -> list[LoggedRequest]:
    return [replace(LOGGED, arrival_unix_s=1e9 + i, prompt_tokens=1 + i) for i in range(count)]


def lengths(path: Path) -> list[int]:
    return [request.prompt_tokens for request in open_trace(path)]


def test_every_request_gets_one_line_in_order_and_later_runs_go_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for part in (numbered(5000)[:3000], numbered(5000)[3000:]):
        with opened(path) as log:
            for logged in part:
                log.add(logged)
    assert lengths(path) == list(range(1, 5001))
    assert path.stat().st_mode & 0o007 == 0


def test_a_line_is_there_before_the_log_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with opened(path) as log:
        log.add(LOGGED)
        until_s = time.monotonic() + 10
        while not path.stat().st_size and time.monotonic() < until_s:
            time.sleep(0.01)
        assert path.read_text() == to_line(LOGGED)


def test_what_takes_long_is_done_on_the_writers_thread(tmp_path: Path) -> None:
    path, names = tmp_path / "log.jsonl", []

    def rest(logged: LoggedRequest) -> LoggedRequest:
        names.append(threading.current_thread().name)
        return replace(logged, prompt_tokens=77)

    with opened(path) as log:
        log.add(LOGGED, rest)
    assert (lengths(path), names) == ([77], ["request-log"])


def test_a_request_that_cannot_be_told_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def rest(logged: LoggedRequest) -> LoggedRequest:
        raise ValueError("broken")

    with opened(tmp_path / "log.jsonl") as log:
        log.add(LOGGED, rest)
        log.add(replace(LOGGED, prompt_tokens=5))
    assert lengths(tmp_path / "log.jsonl") == [5]
    assert "a request cannot be logged" in caplog.text


def test_a_crash_that_cut_a_line_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = to_line(LOGGED)
    path.write_text(line + line[:50])
    with opened(path) as log:
        log.add(replace(LOGGED, arrival_unix_s=2e9, prompt_tokens=5))
    assert lengths(path) == [10, 5]
    path.write_text(line[:50])
    with opened(path):
        pass
    assert path.read_text() == ""


@pytest.mark.parametrize("content", ["name: my-cluster\n", '{"timestamp": 0}\n', "x"])
def test_a_file_that_holds_something_else_is_not_touched(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    with pytest.raises(SpecError, match=r"gateway\.request_log: .* holds something else"):
        RequestLog(str(path))
    assert path.read_text() == content


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gateway\.request_log: .* cannot be written: No such file"):
        RequestLog(str(tmp_path / "none" / "log.jsonl"))
    with pytest.raises(SpecError, match="cannot be written: Is a directory"):
        RequestLog(str(tmp_path))


def test_a_full_disk_costs_lines_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), opened(Path("/dev/full")) as log:
        for logged in numbered(3000):
            log.add(logged)
    assert [record.message for record in caplog.records if "not logged" in record.message] == [
        "/dev/full: requests are not logged: [Errno 28] No space left on device"
    ]


def test_no_part_of_a_line_is_left_where_the_disk_filled_up_and_writing_goes_on_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as log:
        log.add(LOGGED)
        _until(lambda: path.stat().st_size > 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            for logged in numbered(1500):
                log.add(logged)
            _until(lambda: "not logged" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes().endswith(b"\n")
        log.add(replace(LOGGED, arrival_unix_s=2e9, prompt_tokens=5))
    read = [json.loads(line)["prompt_tokens"] for line in path.read_text().splitlines()]
    assert (read[0], read[-1]) == (10, 5)
    assert f"{1502 - len(read)} requests are missing" in caplog.text


@pytest.mark.slow
def test_more_than_may_wait_are_dropped_and_never_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    def rest(logged: LoggedRequest) -> LoggedRequest:
        go.wait(30)
        return logged

    path = tmp_path / "log.jsonl"
    with opened(path) as log:
        log.add(LOGGED, rest)
        for _ in range(MAX_WAITING + 5000):
            log.add(LOGGED, rest)
        go.set()
        _until(lambda: path.read_bytes().count(b"\n") >= MAX_WAITING)
    assert "requests are not logged: more wait than the disk takes" in caplog.text
    assert "requests are missing" in caplog.text


@pytest.mark.slow
def test_a_killed_process_leaves_all_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = (
        "import sys, time\nfrom tests.cluster.test_request_log import numbered\n"
        "from twinpool.cluster.request_log import RequestLog\n"
        "log = RequestLog(sys.argv[1])\nfor item in numbered(100): log.add(item)\n"
        "time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root) as child:
        _until(lambda: path.exists() and path.read_bytes().count(b"\n") == 100)
        child.kill()
    assert lengths(path) == list(range(1, 101))


def test_replicas_write_to_files_of_their_own(tmp_path: Path) -> None:
    assert path_of_replica("", tmp_path, 0, 1) == ""
    assert path_of_replica("a/log.jsonl", tmp_path, 0, 1) == f"{tmp_path}/a/log.jsonl"
    assert path_of_replica("log.jsonl", tmp_path, 1, 2) == f"{tmp_path}/log.gateway-1.jsonl"
    assert path_of_replica("/x/log", tmp_path, 0, 2) == "/x/log.gateway-0"
    assert path_of_replica("~/log", tmp_path, 0, 1) == os.path.expanduser("~/log")  # noqa: PTH111


def _until(is_true: object) -> None:
    assert callable(is_true)
    until_s = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < until_s
        time.sleep(0.01)
