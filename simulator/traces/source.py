"""A file of requests in a format that is known: which one it is, and its lines in order.

Knows every format's lines; not what is played of them.
"""

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from twinpool.core.errors import SpecError
from twinpool.core.limits import shown
from twinpool.simulator.traces import azure, burstgpt, mooncake, request_log
from twinpool.simulator.traces.counts import BadLine
from twinpool.simulator.traces.entry import Entry, in_order
from twinpool.simulator.traces.lengths import length_columns, length_rows
from twinpool.simulator.traces.lines import (
    Findings,
    Row,
    Values,
    csv_rows,
    first_line,
    is_json,
    json_rows,
    split_header,
)
from twinpool.simulator.traces.options import Format


class _Timed(NamedTuple):
    """How a file with times of its own is read."""

    rows: Callable[[Path], Iterator[tuple[int, Row]]]
    read: Callable[[Values], Entry | None]
    window: int  # lines that one may stand too late by; a request log is in order of endings


_TIMED = {
    Format.AZURE: _Timed(lambda path: csv_rows(path, [azure.COLUMNS]), azure.read_entry, 1024),
    Format.BURSTGPT: _Timed(lambda path: csv_rows(path, [burstgpt.COLUMNS]), burstgpt.read_entry, 1024),
    Format.MOONCAKE: _Timed(json_rows, mooncake.read_entry, 1024),
    Format.REQUEST_LOG: _Timed(json_rows, request_log.read_entry, 65_536),
}


def recognise(path: Path) -> Format:
    """The format of a file, by its first line.

    Raises:
        SpecError: it cannot be read, is empty, or is in no format that is known.
    """
    begin = first_line(path)
    if not begin:
        raise SpecError(f"{path}: holds no request")
    names = _json_names(begin) if is_json(begin) else split_header(begin)
    if request_log.KEY in names:
        return Format.REQUEST_LOG
    for kind, columns in (
        (Format.MOONCAKE, mooncake.KEYS),
        (Format.AZURE, azure.COLUMNS),
        (Format.BURSTGPT, burstgpt.COLUMNS),
        (Format.LENGTHS, length_columns(names)),
    ):
        if columns and all(name in names for name in columns):
            return kind
    raise SpecError(f"{path}:1: is no header or line of a format that is known ({', '.join(Format)}): {shown(begin)}")


def _json_names(line: str) -> list[str]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(values) if isinstance(values, dict) else []


@dataclass(slots=True)
class Survey:
    """What a look through a file found, before any of it is played."""

    num_requests: int = 0
    num_skipped: int = 0
    first_ns: int = 0
    last_ns: int = 0
    prompt_tokens: "array[int]" = field(default_factory=lambda: array("i"))  # of each request, where asked for
    output_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    lines: "array[int]" = field(default_factory=lambda: array("i"))

    @property
    def mean_gap_s(self) -> float:
        """Between arrivals; 0 where all come at once."""
        return (self.last_ns - self.first_ns) / 1e9 / max(1, self.num_requests - 1)

    @property
    def period_s(self) -> float:
        """After which the file may begin again without a change of its mean rate."""
        return self.mean_gap_s * self.num_requests


def play_entries(path: Path, kind: Format) -> Iterator[Entry]:
    """The requests of a file with times, in order. Raises SpecError at the first line that is wrong."""
    findings = Findings(path)
    for entry in _entries(path, kind, findings):
        findings.refuse()
        yield entry
    findings.refuse()


def survey_entries(path: Path, kind: Format, is_enough: Callable[[int, int], bool]) -> Survey:
    """Look through a file with times, up to where ``is_enough(requests so far, ns since the first)``.

    Raises:
        SpecError: lines are wrong; every one of them so far is told, up to 20. Or there is no request.
    """
    findings, survey = Findings(path), Survey()
    for entry in _entries(path, kind, findings):
        survey.first_ns = entry.at_ns if not survey.num_requests else survey.first_ns
        survey.last_ns = entry.at_ns
        survey.num_requests += 1
        if is_enough(survey.num_requests, survey.last_ns - survey.first_ns):
            break
    return _checked(survey, findings)


def survey_lengths(path: Path, kind: Format) -> Survey:
    """Look through any file and keep all its lengths and lines: 12 bytes a request. Times need not be in order.

    Raises:
        SpecError: as for `survey_entries`.
    """
    findings, survey = Findings(path), Survey()
    for line, entry in _lengths(path, findings) if kind is Format.LENGTHS else _numbered(path, kind, findings):
        survey.prompt_tokens.append(entry.prompt_tokens)
        survey.output_tokens.append(entry.output_tokens)
        survey.lines.append(line)
        survey.num_requests += 1
    return _checked(survey, findings)


def _checked(survey: Survey, findings: Findings) -> Survey:
    findings.refuse()
    if not survey.num_requests:
        raise SpecError(f"{findings.path}: holds no request")
    survey.num_skipped = findings.num_skipped
    return survey


def _lengths(path: Path, findings: Findings) -> Iterator[tuple[int, Entry]]:
    for line, length in length_rows(path):
        if isinstance(length, str):
            findings.add(line, length)
        else:
            yield line, Entry(0, length.prompt_tokens, length.new_tokens, line=line)


def _entries(path: Path, kind: Format, findings: Findings) -> Iterator[Entry]:
    """Requests in order."""
    for line, entry in in_order(_numbered(path, kind, findings), _TIMED[kind].window):
        if isinstance(entry, str):
            findings.add(line, entry)
        else:
            yield entry


def _numbered(path: Path, kind: Format, findings: Findings) -> Iterator[tuple[int, Entry]]:
    timed = _TIMED[kind]
    for line, row in timed.rows(path):
        if isinstance(row, str):
            findings.add(line, row)
            continue
        try:
            entry = timed.read(row)
        except BadLine as why:
            findings.add(line, str(why))
            continue
        if entry is None:
            findings.num_skipped += 1
        else:
            yield line, entry._replace(line=line)
