"""The input of a batch: read twice, once for its ids and once for its requests, and never held in memory.

Knows files; what a line means is line.py's business.
"""

import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from twinpool.cluster.batch.line import MAX_LINE_BYTES, Key, Line, Problem, read_key, read_line
from twinpool.core.errors import SpecError

MAX_DUPLICATES_TOLD = 20


@dataclass(frozen=True, slots=True)
class BatchInput:
    """A file that was looked through: the keys of its lines, and how many bytes of it were seen."""

    path: Path
    keys: dict[Key, int]  # to the line's number
    num_bytes: int

    def lines(self, without: Container[Key]) -> Iterator[Line]:
        """Read the lines again, without those of some keys and those whose keys have changed since the first look."""
        for number, raw in _read(self.path, self.num_bytes):
            key = read_key(number, raw)
            if key not in without and self.keys.get(key) == number:
                yield read_line(number, raw)


def scan_input(path: Path) -> BatchInput:
    """Look through a batch's input.

    Raises:
        SpecError: it cannot be read, has no line with a custom_id, or has one twice: each with its lines' numbers.
    """
    keys: dict[Key, int] = {}
    duplicates = []
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SpecError(f"{path}: is no regular file; a batch reads its input twice")
        for number, raw in _read(path, status.st_size):
            key = read_key(number, raw)
            first = keys.setdefault(key, number)
            if first != number:
                duplicates.append(f"{path}:{number}: custom_id {key!r} is that of line {first}")
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    if len(duplicates) > MAX_DUPLICATES_TOLD:
        duplicates[MAX_DUPLICATES_TOLD:] = [f"{path}: and {len(duplicates) - MAX_DUPLICATES_TOLD} more"]
    if duplicates:
        raise SpecError("\n".join(duplicates))
    if not keys:
        raise SpecError(f"{path}: has no requests")
    if not any(isinstance(key, str) for key in keys):
        raise SpecError(f"{path}: has no requests: {_first_problem(path, status.st_size)}")
    return BatchInput(path, keys, status.st_size)


def _first_problem(path: Path, num_bytes: int) -> str:
    problems = (read_line(number, raw).content for number, raw in _read(path, num_bytes))
    return next((problem.message for problem in problems if isinstance(problem, Problem)), "it was changed")


def _read(path: Path, num_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The lines of the first ``num_bytes`` with their numbers, empty ones left out, the too long cut one byte later."""
    number, left = 0, num_bytes
    with path.open("rb") as file:
        while raw := file.readline(min(MAX_LINE_BYTES + 1, left)):
            number, left = number + 1, left - len(raw)
            rest = raw
            while left and not rest.endswith(b"\n"):
                rest = file.readline(min(MAX_LINE_BYTES, left))
                left -= len(rest)
                if not rest:
                    return  # somebody made the file shorter
            if raw.strip():
                yield number, raw


def check_apart(input_path: Path, output_path: Path) -> None:
    """Raise SpecError when input and output are one file."""
    if output_path.exists() and output_path.samefile(input_path):
        raise SpecError(f"{output_path}: is the input itself")
