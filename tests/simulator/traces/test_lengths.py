"""Files of lengths: what they hold is taken in order, and each bad line is told with its number and reason."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import SpecError
from twinpool.simulator.traces.lengths import Length, read_lengths


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, max_model_len: int | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_lengths(path, max_model_len)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "prompt_tokens,new_tokens\n10,2\n30,4\n"),
        ("a.csv", "\ufeffprompt_tokens, new_tokens\r\n10, 2\r\n\r\n30,4"),
        ("a.csv", 'time,new_tokens,prompt_tokens,note\n0.5,2,10,"a\nb"\n0.7,4,30,\n'),
        ("a.jsonl", '{"prompt_tokens": 10, "new_tokens": 2}\n\n{"new_tokens": 4, "prompt_tokens": 30, "t": 1}'),
        ("a.csv", "prompt_tokens,output_tokens\n10,2\n30,4\n"),
        ("a.csv", "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n10,2,12,5.0\n30,4,34,7.5\n"),
        ("a.csv", "task_id,est_prompt_tokens,est_output_tokens\nT/0,10,2\nT/1,30,4\n"),
        ("a.jsonl", '{"prompt_tokens": 10, "output_tokens": 2}\n{"prompt_tokens": 30, "output_tokens": 4}'),
    ],
)
def test_lengths_are_read_in_order_whatever_else_the_file_has(tmp_path: Path, name: str, content: str) -> None:
    assert read_lengths(write(tmp_path, name, content)) == (Length(10, 2), Length(30, 4))


@pytest.mark.parametrize(
    ("name", "content", "line", "told"),
    [
        ("a.csv", "prompt_tokens,new_tokens\n10,2\n0,2\n", 3, "prompt_tokens must be a whole number"),
        ("a.csv", "prompt_tokens,new_tokens\n10,-2\n", 2, "new_tokens must be a whole number"),
        ("a.csv", "prompt_tokens,new_tokens\n10,1.5\n", 2, "'1.5'"),
        ("a.csv", "prompt_tokens,new_tokens\n10\n", 2, "new_tokens"),
        ("a.csv", "prompt_tokens,new_tokens\n٣,2\n", 2, "prompt_tokens"),
        ("a.csv", "prompt_tokens,new_tokens\n10,99999999\n", 2, "new_tokens"),
        ("a.csv", "10,2\n", 1, "the header must name prompt_tokens and new_tokens"),
        ("a.csv", "prompt_tokens,new_tokens,new_tokens\n1,2,3\n", 1, "once each"),
        ("a.csv", b"prompt_tokens,new_tokens\n10,2\n\xff,3\n", 3, "is not UTF-8"),
        ("a.csv", "prompt_tokens,new_tokens\n" + "9" * 200_000 + ",2\n", 2, "is not CSV"),
        ("a.jsonl", '{"prompt_tokens": 10, "new_tokens": true}', 1, "not True"),
        ("a.jsonl", '{"prompt_tokens": 10, "new_tokens": 2}\nnope', 2, "is not JSON"),
        ("a.jsonl", "\n[1, 2]", 2, "must be a JSON object"),
        ("a.jsonl", "[" * 100_000, 1, "is not JSON"),
        ("a.jsonl", '{"prompt_tokens": 1e400, "new_tokens": 2}', 1, "prompt_tokens"),
    ],
)
def test_a_bad_line_is_told_with_its_number(
    tmp_path: Path, name: str, content: str | bytes, line: int, told: str
) -> None:
    path = write(tmp_path, name, content)
    (only,) = refusal(path)
    assert only.startswith(f"{path}:{line}: ")
    assert told in only
    assert len(only) < 400


def test_all_bad_lines_are_told_up_to_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "prompt_tokens,new_tokens\n" + "x,1\n" * 3)
    assert [line.split(":")[1] for line in refusal(path)] == ["2", "3", "4"]
    path = write(tmp_path, "b.csv", "prompt_tokens,new_tokens\n" + "x,1\n" * 30)
    lines = refusal(path)
    assert len(lines) == 21
    assert "10 more bad lines" in lines[-1]


def test_requests_longer_than_the_model_allows_are_bad_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "prompt_tokens,new_tokens\n90,10\n91,10\n")
    assert len(read_lengths(path)) == 2
    (only,) = refusal(path, 100)
    assert only.startswith(f"{path}:3: 91 + 10 tokens are over")


def test_a_file_without_requests_or_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "holds no request" in refusal(write(tmp_path, "a.csv", "prompt_tokens,new_tokens\n\n"))[0]
    assert "holds no request" in refusal(write(tmp_path, "a.jsonl", "\n"))[0]
    assert "header" in refusal(write(tmp_path, "b.csv", ""))[0]
    assert "No such file" in refusal(tmp_path / "none.csv")[0]
    assert "Is a directory" in refusal(tmp_path)[0]


@given(st.lists(st.tuples(st.integers(1, 2**24), st.integers(1, 2**24)), min_size=1, max_size=20))
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("lengths")
    rows = "".join(f"{prompt},{new}\n" for prompt, new in pairs)
    lines = "".join(f'{{"prompt_tokens": {prompt}, "new_tokens": {new}}}\n' for prompt, new in pairs)
    expected = tuple(Length(*pair) for pair in pairs)
    assert read_lengths(write(folder, "a.csv", "prompt_tokens,new_tokens\n" + rows)) == expected
    assert read_lengths(write(folder, "a.jsonl", lines)) == expected
