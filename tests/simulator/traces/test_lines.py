"""Lines are read one at a time; one that has no end, or is no text, is told and not held."""

from pathlib import Path

import pytest

from twinpool.core.errors import SpecError
from twinpool.simulator.traces.lines import MAX_LINE_BYTES, csv_rows, first_line, json_rows


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + b"x" * (MAX_LINE_BYTES + 10))
    with pytest.raises(SpecError, match=f":2: is over {MAX_LINE_BYTES} bytes long"):
        list(json_rows(path))


def test_rows_before_a_line_that_is_no_text_are_given(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n a , b \n1,2\n\n3,4\n\xff,1\n")
    rows = csv_rows(path, [("a", "b")])
    assert [next(rows), next(rows)] == [(3, {"a": "1", "b": "2"}), (5, {"a": "3", "b": "4"})]
    with pytest.raises(SpecError, match=":6: is not UTF-8 text"):
        next(rows)


def test_a_row_of_nothing_but_commas_is_a_row_and_one_of_more_fields_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n,\n1,2,3\n \n4\n")
    told = [(2, {"a": "", "b": ""}), (3, "has 3 fields, and the header 2"), (5, {"a": "4"})]
    assert list(csv_rows(path, [("a", "b")])) == told


def test_the_first_line_is_the_first_that_is_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf\r\n\r\na,b\r\n1,2")
    assert first_line(path) == "a,b"
    path.write_bytes(b" \n")
    assert first_line(path) == ""
