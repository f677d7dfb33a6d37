"""The output of a batch: locked while a run writes it, and always continued, never written anew.

A line is written whole or, when the process dies at the wrong moment, cut off at the end of the file, where the next
run removes it. Knows nothing of clusters.
"""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from twinpool.cluster.batch.line import Key
from twinpool.cluster.batch.record import PREFIX, Record, read_record
from twinpool.core.errors import SpecError


class OutputFile:
    """Owns the file, its lock, and the record of what has been answered."""

    def __init__(self, path: Path, keys: Mapping[Key, int]) -> None:
        """Open, lock and read an output that may not exist yet; ``keys`` are those of its input.

        Raises:
            SpecError: it cannot be written, another run writes it, or it is not the output of this input. It was not
                changed then.
        """
        self._path = path
        self.answered: dict[Key, bool] = {}  # to whether there is an answer, not a problem
        if path.exists() and not path.is_file():
            raise SpecError(f"{path}: cannot be written: is no regular file")
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise SpecError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            self._lock()
            self._num_bytes = self._read(keys)
            self._file.truncate(self._num_bytes)
        except OSError as error:
            self.close()
            raise SpecError(f"{path}: cannot be used: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, raw: bytes, record: Record) -> None:
        """Write one line.

        Raises:
            OSError: it could not be written, and nothing of it was left in the file.
        """
        try:
            written = self._file.write(raw)
            while written is not None and written < len(raw):  # the disk is full, or nearly
                written += self._file.write(raw[written:])
        except OSError as error:
            self._file.truncate(self._num_bytes)
            raise self._named(error) from None
        self._num_bytes += len(raw)
        self.answered[record.key] = record.is_ok

    def sync(self) -> None:
        """Have the system write everything to its disk. May be called by another thread. Raises OSError."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._named(error) from None

    def _named(self, error: OSError) -> OSError:
        """The same with the file's name, which the system leaves out."""
        return OSError(error.errno, error.strerror, str(self._path))

    def close(self) -> None:
        """Let the file go; the lock goes with it. Idempotent."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(f"{self._path}: another run writes it now") from None

    def _read(self, keys: Mapping[Key, int]) -> int:
        """Take in every whole line; return where the last one ends."""
        self._file.seek(0)
        end = 0
        with open(self._file.fileno(), "rb", closefd=False) as lines:  # the very file that is locked
            for number, raw in enumerate(lines, start=1):
                if not raw.endswith(b"\n"):
                    self._check_torn(number, raw)
                    break
                self._take(number, raw, keys)
                end += len(raw)
        return end

    def _take(self, number: int, raw: bytes, keys: Mapping[Key, int]) -> None:
        where = f"{self._path}:{number}"
        try:
            record = read_record(raw)
        except ValueError as error:
            raise SpecError(f"{where}: {error}; choose another output") from None
        if record.key in self.answered:
            raise SpecError(f"{where}: answers custom_id {record.key!r} a second time")
        if isinstance(record.key, str) and record.key not in keys:
            what = f"answers custom_id {record.key!r}, which the input does not have"
            raise SpecError(f"{where}: {what}; choose another output")
        self.answered[record.key] = record.is_ok

    def _check_torn(self, number: int, raw: bytes) -> None:
        """A file that is somebody else's is not cut."""
        if number == 1 and not raw.startswith(PREFIX) and not PREFIX.startswith(raw):
            raise SpecError(f"{self._path}: is not the output of a batch; choose another output")
