"""Lines of a file, one at a time: CSV by its header, or JSON objects; what is wrong with a line is told by its number.

Constant memory, whatever the file. Knows no column by name.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from twinpool.core.errors import SpecError
from twinpool.core.limits import shown

MAX_LINE_BYTES = 4 * 2**20
MAX_TOLD = 20

Values = dict[str, Any]
Row = Values | str  # a line's values, or what is wrong with it


class Findings:
    """What reading a file turned up beside its requests: bad lines, of which 20 are kept, and lines left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_skipped = 0
        self._told: list[str] = []
        self._num_more = 0

    def add(self, line: int, why: str) -> None:
        """Note a bad line."""
        if len(self._told) < MAX_TOLD:
            self._told.append(f"{self.path}:{line}: {why}")
        else:
            self._num_more += 1

    def refuse(self) -> None:
        """Raise SpecError, one text line for each bad line, unless there is none."""
        if self._told:
            more = [f"{self.path}: and {self._num_more} more bad lines"] if self._num_more else []
            raise SpecError("\n".join(self._told + more))


def is_json(first_line: str) -> bool:
    """Whether a file that begins so holds JSON objects rather than CSV."""
    return first_line.lstrip().startswith("{")


def first_line(path: Path) -> str:
    """The first line that is not blank; "" where there is none.

    Raises:
        SpecError: the file cannot be read, or is no text.
    """
    with _opened(path) as file:
        return next((line for _, line in _lines(path, file) if line.strip()), "").rstrip("\r\n")


def split_header(line: str) -> list[str]:
    """The column names of a CSV header; none where it is no CSV."""
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def csv_rows(path: Path, columns: Sequence[Sequence[str]]) -> Iterator[tuple[int, Row]]:
    """Each row that is not blank, by its header's names, with the number of its last line.

    Args:
        columns: sets of names; the header must hold one of the sets, each name once.

    Raises:
        SpecError: the file cannot be read, has no such header, or is no CSV from some line on.
    """
    with _opened(path) as file:
        reader = csv.reader(line for _, line in _lines(path, file))
        try:
            header = [cell.strip() for cell in next((cells for cells in reader if any(cells)), [])]
            if not any(all(header.count(name) == 1 for name in names) for names in columns):
                known = ", or ".join(" and ".join(names) for names in columns)
                where = f"{path}:{max(1, reader.line_num)}"
                raise SpecError(f"{where}: the header must name {known}, once each, not {shown(header)}")
            for cells in reader:
                if len(cells) > len(header):
                    yield reader.line_num, f"has {len(cells)} fields, and the header {len(header)}"
                elif len(cells) > 1 or any(cell.strip() for cell in cells):
                    yield reader.line_num, dict(zip(header, cells, strict=False))
        except csv.Error as error:
            raise SpecError(f"{path}:{reader.line_num}: is not CSV: {error}") from None


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The object of each line that is not blank, with its number.

    Raises:
        SpecError: the file cannot be read, or is no text from some line on.
    """
    with _opened(path) as file:
        for number, line in _lines(path, file):
            if line.strip():
                yield number, _json_object(line)


def _json_object(line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return values if isinstance(values, dict) else f"must be a JSON object, not {shown(values)}"


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    number = 0
    while data := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(data) == MAX_LINE_BYTES and not data.endswith(b"\n"):
            raise SpecError(f"{path}:{number}: is over {MAX_LINE_BYTES} bytes long")
        try:
            text = data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise SpecError(f"{path}:{number}: is not UTF-8 text") from None
        yield number, text
