"""Reads and writes what was measured: profile files (JSON) and performance tables (CSV).

Knows files and refuses bad ones by name, line and key; what the numbers mean is router/latency_profile.py's.
"""

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from twinpool.core.errors import SpecError
from twinpool.router.latency_profile import LatencyProfile
from twinpool.router.latency_table import ProfilePoint

MAX_PROFILE_BYTES = 4 * 1024**2
MAX_CSV_BYTES = 256 * 1024**2
MAX_PROBLEMS = 20
COLUMNS = (
    "model",
    "hardware",
    "tensor_parallel",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
)


class ProfileGroup(NamedTuple):
    """What a row of a performance table was measured on."""

    model: str
    hardware: str
    tensor_parallel: int


def read_profile(path: str | Path) -> LatencyProfile:
    """A profile file.

    Raises:
        SpecError: it cannot be read or is no profile; one line ``FILE: key: what is wrong`` for each problem.
    """
    path = Path(path)
    try:
        data = json.loads(_read_text(path, MAX_PROFILE_BYTES))
    except ValueError as error:
        raise SpecError(f"{path}: is not JSON: {error}") from error
    except RecursionError:
        raise SpecError(f"{path}: is not a profile: nested too deeply") from None
    try:
        return LatencyProfile.model_validate(data)
    except ValidationError as error:
        problems = [_problem(path, item["loc"], item["msg"]) for item in error.errors(include_url=False)]
        raise SpecError(_told(problems)) from None


def write_profile(path: str | Path, profile: LatencyProfile) -> None:
    """Replace the file at once, or leave it as it was.

    Raises:
        SpecError: it cannot be written.
    """
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(profile.model_dump_json(indent=2) + "\n", encoding="utf-8")
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from error


def read_profile_csv(path: str | Path, model: str, hardware: str, tensor_parallel: int) -> tuple[ProfilePoint, ...]:
    """The points of one model, GPU and tensor parallel degree; every line is checked, those of others too.

    Raises:
        SpecError: as `read_profile_groups`, or no line is about what was asked for.
    """
    groups = read_profile_groups(path)
    points = groups.get(ProfileGroup(model, hardware, tensor_parallel))
    if points is None:
        known = ", ".join(f"{m} on {h} tp{t}" for m, h, t in sorted(groups)) or "nothing"
        raise SpecError(f"{path}: has nothing about {model} on {hardware} tp{tensor_parallel}; it has {known}")
    return points


def read_profile_groups(path: str | Path) -> dict[ProfileGroup, tuple[ProfilePoint, ...]]:
    """All points of a performance table, by what they were measured on.

    Columns as in splitwise-sim's ``data/perf_model.csv``, in any order, more are welcome; times in milliseconds.

    Raises:
        SpecError: it cannot be read, or lines are bad: ``FILE:LINE: column: what is wrong``, 20 at most.
    """
    path = Path(path)
    groups, problems = defaultdict[ProfileGroup, list[ProfilePoint]](list), []
    for number, row in _rows(path, _read_text(path, MAX_CSV_BYTES).splitlines()):
        point = _point(row)
        if isinstance(point, str):
            problems.append(f"{path}:{number}: {point}")
        else:
            groups[ProfileGroup(row["model"], row["hardware"], int(row["tensor_parallel"]))].append(point)
    if problems:
        raise SpecError(_told(problems))
    return {group: tuple(points) for group, points in groups.items()}


def _rows(path: Path, lines: list[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, values by column), the header left out."""
    reader = csv.DictReader(lines, restkey="", restval="")
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SpecError(f"{path}:1: lacks the columns {', '.join(missing)}")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise SpecError(f"{path}:{reader.line_num}: is not CSV: {error}") from error


def _point(row: Mapping[str, str]) -> ProfilePoint | str:
    """The line's point, or what is wrong with it."""
    counts, times = [], []
    for name in ("prompt_size", "batch_size", "token_size", "tensor_parallel"):
        if not (row[name].isascii() and row[name].isdigit() and len(row[name]) <= 20 and 0 < int(row[name]) <= 10**9):
            return f"{name}: {row[name]!r} is not a whole number from 1 on"
        counts.append(int(row[name]))
    for name in ("prompt_time", "token_time"):
        try:
            value = float(row[name])
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            return f"{name}: {row[name]!r} is not a number of milliseconds over 0"
        times.append(value / 1e3)
    return ProfilePoint(counts[0], counts[1], counts[2], times[0], times[1])


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise SpecError(f"{path}: is over {max_bytes >> 20} MiB")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text") from error


def _problem(path: Path, location: tuple[int | str, ...], what: str) -> str:
    key = ".".join(str(part) for part in location)
    return f"{path}: {key}: {what}" if key else f"{path}: {what}"


def _told(problems: list[str]) -> str:
    more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    return "\n".join(problems[:MAX_PROBLEMS] + more)
