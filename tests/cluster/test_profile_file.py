"""Files of measurements: what they say, and what is refused with the place where it stands."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.router.profiles import kind, profile
from twinpool.cluster.profile_file import (
    MAX_PROBLEMS,
    read_profile,
    read_profile_csv,
    read_profile_groups,
    write_profile,
)
from twinpool.core.errors import SpecError
from twinpool.router.latency_profile import LatencyProfile
from twinpool.router.latency_table import ProfilePoint

HEADER = "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel,e2e_time"
ROWS = ("m,gpu,512,2,128,100.5,20.25,4,9", "m,gpu,1024,1,128,200,21,4,9", "other,gpu,1024,1,128,200,21,1,9")


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "file"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path) -> list[str]:
    """What is wrong with a table, without the file's name."""
    with pytest.raises(SpecError) as caught:
        read_profile_groups(path)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_a_profile_comes_back_as_it_was_written(tmp_path: Path) -> None:
    value = LatencyProfile.model_validate(profile(prefill_tp1_pp1=kind(), decode_tp1_pp1=kind("decode")))
    write_profile(tmp_path / "p.json", value)
    assert read_profile(tmp_path / "p.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_profile_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.json").mkdir()
    with pytest.raises(SpecError, match=r"p\.json: cannot be written"):
        write_profile(tmp_path / "p.json", LatencyProfile.model_validate(profile()))
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not"),
        (b"\xff", "is not UTF-8"),
        ("[]", "valid dictionary"),
        (json.dumps(profile() | {"message_s": -1.0}), ": message_s: "),
        (json.dumps(profile(x=kind("cook"))), ": kinds.x.role: "),
    ],
)
def test_what_is_no_profile_is_refused_with_file_and_key(tmp_path: Path, text: str | bytes, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere: cannot be read: No such file"):
        read_profile(tmp_path / "nowhere")


def test_a_table_gives_points_in_seconds_whatever_its_columns_order(tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join([HEADER, *ROWS]) + "\n")
    expected = (ProfilePoint(512, 2, 128, 0.1005, 0.02025), ProfilePoint(1024, 1, 128, 0.2, 0.021))
    assert read_profile_csv(path, "m", "gpu", 4) == expected


def test_asking_for_what_a_table_has_not_says_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join([HEADER, *ROWS]))
    with pytest.raises(SpecError, match="nothing about m on gpu tp8; it has m on gpu tp4, other on gpu tp1"):
        read_profile_csv(path, "m", "gpu", 8)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt_size", "0"),
        ("prompt_size", "-5"),
        ("batch_size", "1.5"),
        ("token_size", ""),
        ("tensor_parallel", "two"),
        ("tensor_parallel", "²"),
        ("prompt_size", "9" * 5000),
        ("prompt_size", "1" + "0" * 10),
        ("prompt_time", "nan"),
        ("prompt_time", "0"),
        ("token_time", "inf"),
        ("token_time", "fast"),
    ],
)
def test_a_bad_line_is_refused_with_line_column_and_reason(tmp_path: Path, column: str, value: str) -> None:
    names = HEADER.split(",")
    bad = ROWS[2].split(",")
    bad[names.index(column)] = value
    (line,) = refusal(write(tmp_path, "\n".join([HEADER, *ROWS[:2], ",".join(bad)])))
    assert line.startswith(f"4: {column}: ")


def test_a_short_line_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, f"{HEADER}\nm,gpu,512"))[0].startswith("2: batch_size: ")
    assert refusal(write(tmp_path, "model,hardware\nm,gpu")) == [
        "1: lacks the columns tensor_parallel, prompt_size, batch_size, token_size, prompt_time, token_time"
    ]
    assert refusal(write(tmp_path, ""))[0].startswith("1: lacks the columns ")


def test_very_many_bad_lines_are_cut_short(tmp_path: Path) -> None:
    lines = refusal(write(tmp_path, "\n".join([HEADER, *["m"] * 50])))
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "and 30 more"


@given(st.text())
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), f"{HEADER}\n{text}".encode("utf-8", "replace"))
    with contextlib.suppress(SpecError):
        read_profile_groups(path)
