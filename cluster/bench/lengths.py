"""How long prompts and answers of a load are: from a CSV or JSON Lines file, told by line where it is wrong.

Knows numbers of tokens only; other columns (a trace's times, say) are passed over.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from twinpool.core.errors import SpecError
from twinpool.core.limits import shown

MAX_TOKENS = 2**24
MAX_TOLD = 20
COLUMNS = ("prompt_tokens", "new_tokens")


class Length(NamedTuple):
    """Tokens of one request."""

    prompt_tokens: int
    new_tokens: int


Row = dict[str, Any] | str  # a line's values, or what is wrong with it


def read_lengths(path: Path, max_model_len: int | None = None) -> tuple[Length, ...]:
    """The requests of a file, in its order: JSON Lines where its name ends in .jsonl, else CSV with a header.

    Blank lines are passed over.

    Args:
        max_model_len: most tokens of one request, prompt and answer together, where there is such a limit.

    Raises:
        SpecError: the file cannot be read, holds no request, or has bad lines; one ``FILE:LINE: reason`` each.
    """
    lengths, problems = [], []
    for number, row in (_json_rows if path.suffix == ".jsonl" else _csv_rows)(path):
        length = row if isinstance(row, str) else _length(row, max_model_len)
        if isinstance(length, str):
            problems.append(f"{path}:{number}: {length}")
        else:
            lengths.append(length)
    if len(problems) > MAX_TOLD:
        problems[MAX_TOLD:] = [f"{path}: and {len(problems) - MAX_TOLD} more bad lines"]
    if problems:
        raise SpecError("\n".join(problems))
    if not lengths:
        raise SpecError(f"{path}: holds no request")
    return tuple(lengths)


def _length(row: dict[str, Any], max_model_len: int | None) -> Length | str:
    counts = []
    for name in COLUMNS:
        count = _whole(row.get(name))
        if count is None:
            return f"{name} must be a whole number from 1 to {MAX_TOKENS}, not {shown(row.get(name, ''))}"
        counts.append(count)
    if max_model_len is not None and sum(counts) > max_model_len:
        return f"{counts[0]} + {counts[1]} tokens are over the model's max_model_len {max_model_len}"
    return Length(*counts)


def _whole(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS:
        return value
    return None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(f"{path}:{line}: is not UTF-8 text") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if any(header.count(name) != 1 for name in COLUMNS):
            raise SpecError(f"{path}:1: the header must name {' and '.join(COLUMNS)} once each, not {shown(header)}")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise SpecError(f"{path}:{reader.line_num}: is not CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, _json_object(line)


def _json_object(line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return values if isinstance(values, dict) else f"must be a JSON object, not {shown(values)}"
