"""Input and output files of a batch: what is refused before anything runs, and how an output is continued."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.batch_files import chat, completion, read_lines, write_lines
from twinpool.cluster.batch import line as line_module
from twinpool.cluster.batch.input_file import check_apart, scan_input
from twinpool.cluster.batch.line import MAX_LINE_BYTES, Line, Problem, Stumbled, read_line
from twinpool.cluster.batch.output_file import OutputFile
from twinpool.cluster.batch.record import Record, answer_record, problem_record, read_record
from twinpool.cluster.openai_bodies import Ask, Endpoint
from twinpool.core.errors import SpecError


def raw(fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_a_good_line_is_a_request() -> None:
    line = read_line(3, raw(completion("a", "hello")))
    assert (line.key, line.number) == ("a", 3)
    assert isinstance(line.content, Ask)
    assert line.content.prompt == "hello"


@pytest.mark.parametrize(
    "bad",
    [b"nonsense", b"{", b"[1]", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"custom_id": NaN}', b"9" * 5000],
)
def test_a_line_that_is_no_object_is_known_by_its_number(bad: bytes) -> None:
    line = read_line(7, bad)
    assert line.key == 7
    assert isinstance(line.content, Problem)
    assert line.content.code == "invalid_json"
    assert line.content.message.startswith("line 7 ")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{'a': 1}", "line 7 is no JSON: Expecting property name enclosed in double quotes at character 2"),
        (b'{"a": "\xff"}', "line 7 is no JSON: byte 8 is no UTF-8"),
        (b'{"a": NaN}', "line 7 is no JSON: NaN is no JSON number"),
        (b'{"a": -%s}' % (b"9" * 5000), "line 7 is no JSON: it has a number of 5000 digits; at most 640 are read"),
    ],
)
def test_where_a_line_stops_to_be_json_is_told_within_that_line(bad: bytes, said: str) -> None:
    content = read_line(7, bad).content
    assert isinstance(content, Problem)
    assert content.message == said


def test_a_line_with_two_custom_ids_has_none() -> None:
    line = read_line(7, b'{"custom_id": "a", ' + raw(completion("a"))[1:])
    assert line.key == 7
    assert line.content == Problem("invalid_custom_id", "line 7 has two custom_ids", "custom_id")


@pytest.mark.parametrize(
    ("once", "twice", "name"),
    [
        (b'"method": "POST"', b'"method": "POST", "method": "POST"', "method"),
        (b'"max_tokens": 4', b'"max_tokens": 4, "max_tokens": 5', "max_tokens"),
        (b'"role": "user"', b'"role": "user", "role": "system"', "role"),
        (b'"role": "user"', b'"role": "user", "custom_id": "b", "custom_id": "c"', "custom_id"),
    ],
)
def test_a_key_that_is_there_twice_is_named_and_the_line_keeps_its_id(once: bytes, twice: bytes, name: str) -> None:
    line = read_line(7, raw(chat("a")).replace(once, twice))
    assert line.key == "a"
    assert line.content == Problem("invalid_request", f"{name}: is there twice", name)


def test_a_key_may_be_there_again_in_another_object() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert isinstance(read_line(7, raw(chat("a") | {"body": {"messages": messages}})).content, Ask)


def test_a_byte_order_mark_is_no_problem() -> None:
    assert read_line(1, b"\xef\xbb\xbf" + raw(completion("a"))).key == "a"


@pytest.mark.parametrize("custom_id", [5, "", None, ["a"], True])
def test_a_custom_id_that_is_no_text_is_told_with_its_line(custom_id: object) -> None:
    line = read_line(7, raw(completion("a") | {"custom_id": custom_id}))
    assert line.key == 7
    assert isinstance(line.content, Problem)
    assert (line.content.code, line.content.param) == ("invalid_custom_id", "custom_id")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"method": "GET"}, "method"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"url": ["/v1/completions"]}, "url"),
        ({"body": None}, "body"),
        ({"body": {"prompt": "a", "stream": True}}, "stream"),
        ({"body": {"prompt": "a", "tools": []}}, "tools"),
        ({"priority": 1}, "priority"),
    ],
)
def test_a_line_that_cannot_be_asked_keeps_its_id_and_names_the_field(change: dict[str, object], param: str) -> None:
    line = read_line(7, raw(completion("a") | change))
    assert line.key == "a"
    assert isinstance(line.content, Problem)
    assert (line.content.code, line.content.param) == ("invalid_request", param)


@pytest.mark.parametrize("name", ["method", "url", "body"])
def test_a_missing_key_is_named(name: str) -> None:
    fields = completion("a")
    del fields[name]
    content = read_line(1, raw(fields)).content
    assert isinstance(content, Problem)
    assert content.message == f"{name}: is missing"


def raising(error: Exception) -> Callable[[Endpoint, object], Ask]:
    def read_body(endpoint: Endpoint, body: object) -> Ask:
        raise error

    return read_body


def test_a_line_that_our_own_code_stumbles_over_keeps_its_id_and_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "read_body", raising(KeyError("nobody expected")))
    line = read_line(7, raw(completion("a")))
    assert line.key == "a"
    assert isinstance(line.content, Stumbled)
    assert str(line.content) == "KeyError: 'nobody expected'"


def test_a_body_nested_beyond_what_python_follows_is_the_lines_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "read_body", raising(RecursionError()))
    content = read_line(7, raw(completion("a"))).content
    assert content == Problem("invalid_request", "line 7 is nested too deeply")


def test_the_input_is_every_line_but_the_empty_ones(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", [completion("a"), "", "  ", chat("b"), "nonsense"])
    batch = scan_input(path)
    assert batch.keys == {"a": 1, "b": 4, 5: 5}
    assert [line.key for line in batch.lines(without=("a",))] == ["b", 5]


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(raw(completion("a")) + b"\n" + raw(completion("b")))
    assert scan_input(path).keys == {"a": 1, "b": 2}


def test_what_is_added_to_the_input_later_is_not_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", [completion("a")])
    batch = scan_input(path)
    with path.open("a") as file:
        file.write(json.dumps(completion("b")) + "\n")
    assert [line.key for line in batch.lines(without=())] == ["a"]


def test_lines_that_change_their_id_while_a_run_goes_on_are_left_to_the_next(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", [completion("a"), completion("b"), completion("c")])
    batch = scan_input(path)
    write_lines(path, [completion("a"), completion("a"), completion("x")])
    assert [line.number for line in batch.lines(without=())] == [1]


def test_a_line_beyond_all_measure_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(raw(completion("a", "x" * (2 * MAX_LINE_BYTES + 5))) + b"\n" + raw(completion("b")) + b"\n")
    first, second = scan_input(path).lines(without=())
    assert isinstance(first.content, Problem)
    assert "longer than" in first.content.message
    assert second.key == "b"


def test_every_duplicate_is_told_with_both_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", [completion("a"), completion("b"), completion("a"), chat("b")])
    with pytest.raises(SpecError) as refused:
        scan_input(path)
    first, second = str(refused.value).splitlines()
    assert first == f"{path}:3: custom_id 'a' is that of line 1"
    assert second == f"{path}:4: custom_id 'b' is that of line 2"


def test_inputs_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    for name in ("missing", ".", "empty"):
        with pytest.raises(SpecError, match=str(tmp_path)):
            scan_input(tmp_path / name)
    with pytest.raises(SpecError, match="no regular file"):
        scan_input(Path("/dev/null"))


def test_a_file_of_another_kind_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", ["prompt,tokens", "hello,5"])
    with pytest.raises(SpecError) as refused:
        scan_input(path)
    assert str(refused.value) == f"{path}: has no requests: line 1 is no JSON: Expecting value at character 1"


def test_the_output_is_never_the_input(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", [completion("a")])
    (tmp_path / "out").symlink_to(path)
    with pytest.raises(SpecError, match="the input itself"):
        check_apart(path, tmp_path / "out")


LINES = [
    answer_record(Line(1, "a", Problem("", "")), "r1", {"text": "\u2028 \ud800 \u00e9\n"}),
    problem_record(Line(2, "b\u00e9", Problem("", "")), Problem("invalid_request", "prompt: is empty", "prompt")),
    problem_record(Line(3, None, Problem("", "")), Problem("invalid_json", "line 3 is no JSON")),
    answer_record(Line(4, "d", Problem("", "")), "r4", {"text": "x" * 50}),
]
KEYS = {"a": 1, "b\u00e9": 2, 3: 3, "d": 4}


def test_records_are_read_back_as_written() -> None:
    records = [Record("a", True), Record("b\u00e9", False), Record(3, False), Record("d", True)]
    assert [read_record(line) for line in LINES] == records
    assert all(line.count(b"\n") == 1 and line.isascii() for line in LINES)


def test_an_output_cut_at_any_byte_is_continued_to_the_same_lines(tmp_path: Path) -> None:
    path = tmp_path / "out"
    everything = b"".join(LINES)
    for cut in range(len(everything) + 1):
        path.write_bytes(everything[:cut])
        with OutputFile(path, KEYS) as output:
            whole = path.read_bytes()
            assert whole == everything[: everything.rfind(b"\n", 0, cut) + 1]
            assert len(output.answered) == whole.count(b"\n")
            for line in LINES:
                if read_record(line).key not in output.answered:
                    output.append(line, read_record(line))
        assert path.read_bytes() == everything


@given(st.lists(st.tuples(st.integers(0, 400), st.permutations(range(4))), max_size=4))
def test_however_often_a_run_is_killed_each_line_is_answered_once(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("batch") / "out"
    for num_bytes, order in [*kills, (10_000, [3, 1, 0, 2])]:
        with OutputFile(path, KEYS) as output:
            for index in order:
                if read_record(LINES[index]).key not in output.answered:
                    output.append(LINES[index], read_record(LINES[index]))
            size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(min(size, num_bytes))  # the run had come so far
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(LINES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"my notes\n", "1: is no JSON"),
        (b"my notes, no newline", "not the output of a batch"),
        (b'{"a": 1}\n', "1: is no answer of a batch"),
        (LINES[0] + b"\n" + LINES[1], "2: is no JSON"),
        (LINES[0] + b'{"custom_id": null, "response": 1, "error": null}\n', "2: has neither"),
        (LINES[0] + LINES[3] + LINES[0], "3: answers custom_id 'a' a second time"),
        (LINES[0].replace(b'"a"', b'"z"') + b'{"id": "batch_r', "custom_id 'z', which the input does not have"),
    ],
)
def test_an_output_that_is_not_this_batchs_is_refused_and_left_alone(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(SpecError) as refused:
        OutputFile(path, KEYS)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == content


def test_two_runs_never_write_one_output(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with OutputFile(path, KEYS), pytest.raises(SpecError, match="another run writes it now"):
        OutputFile(path, KEYS)
    with OutputFile(path, KEYS) as output:
        output.append(LINES[0], read_record(LINES[0]))
        output.sync()
    assert [line["custom_id"] for line in read_lines(path)] == ["a"]


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "out", Path("/dev/full")):
        with pytest.raises(SpecError, match=str(path)):
            OutputFile(path, KEYS)


class FullDisk:
    """Takes so many bytes, then none."""

    def __init__(self, path: Path, room: int) -> None:
        self._file = path.open("a+b", buffering=0)
        self._room = room

    def write(self, data: bytes) -> int:
        if not self._room:
            raise OSError(28, "No space left on device")
        written = self._file.write(data[: self._room]) or 0
        self._room -= written
        return written

    def truncate(self, size: int) -> int:
        return self._file.truncate(size)

    def close(self) -> None:
        self._file.close()


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "out"
    output = OutputFile(path, KEYS)
    output._file.close()
    output._file = FullDisk(path, len(LINES[0]) + 10)  # type: ignore[assignment]
    output.append(LINES[0], read_record(LINES[0]))
    with pytest.raises(OSError, match="No space left") as full:
        output.append(LINES[1], read_record(LINES[1]))
    output.close()
    assert full.value.filename == str(path)
    assert path.read_bytes() == LINES[0]
    assert set(output.answered) == {"a"}


def test_the_example_has_nothing_but_requests() -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "batch.jsonl"
    lines = list(scan_input(path).lines(without=()))
    assert len(lines) == 5
    assert all(isinstance(line.content, Ask) for line in lines)
