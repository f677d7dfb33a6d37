"""The files that a simulated run writes: none of them an input, and each replaced at once when the run is over.

Knows files and the options that named them; nothing of what is written.
"""

import io
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from twinpool.core.errors import SpecError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Named = tuple[str, Path]  # what a command line calls a file, and the file
_OPEN_ALREADY = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,6})").fullmatch


def check_outputs(outputs: Sequence[Named], inputs: Sequence[Named]) -> None:
    """See that no output is an input, a folder, or the file of another output.

    Raises:
        SpecError: one is; it is named, and nothing was touched.
    """
    known: list[Named] = list(inputs)
    for option, path in outputs:
        if path.is_dir():
            raise SpecError(f"{option}: {path} is a folder")
        for other, taken in known:
            if _are_one(path, taken):
                raise SpecError(f"{option}: {path} is the same file as {other}, {taken}; nothing was written")
        known.append((option, path))


def _are_one(path: Path, other: Path) -> bool:
    """Whether what is written to the one is lost on the other; a device such as /dev/null bears both."""
    try:
        found = path.stat()
        return os.path.samestat(found, other.stat()) and not stat.S_ISCHR(found.st_mode)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)  # at least one is not there yet


class Outputs:
    """Text files of one run, by option. A context: what is at their paths changes where it ends without an error.

    Until then each is a file beside, which an error removes. What is no regular file (a device, a pipe) is written to
    as the run goes on.
    """

    def __init__(self, paths: Mapping[str, Path | None]) -> None:
        self._files = [_Output(option, path) for option, path in paths.items() if path is not None]

    def __enter__(self) -> Self:
        """Make the folders and open the files; raises SpecError, with nothing left behind but folders."""
        try:
            for file in self._files:
                file.open()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._discard()
            return
        try:
            for file in self._files:
                file.close()
            for file in self._files:
                file.replace()
        finally:
            self._discard()

    def stream(self, option: str) -> TextIO | None:
        """Where to write what that option asks for; None where it is not given. Writing raises SpecError."""
        return next((file.stream for file in self._files if file.option == option), None)

    def _discard(self) -> None:
        for file in self._files:
            file.discard()


class _Output:
    """One file, and the one beside it that stands for it until all is written."""

    def __init__(self, option: str, path: Path) -> None:
        self.option = option
        self.path = path
        self.stream: TextIO | None = None
        self._beside: Path | None = None
        self._target = path

    def open(self) -> None:
        name = str(self.path)
        try:
            if (descriptor := _descriptor(name)) is not None:
                raw = _Raw(self.option, name, os.dup(descriptor))
            elif self.path.exists() and not self.path.is_file():
                raw = _Raw(self.option, name, os.open(name, os.O_WRONLY))
            else:
                raw = self._open_beside()
        except OSError as error:
            raise _refusal(self.option, name, error) from None
        self.stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")

    def _open_beside(self) -> "_Raw":
        self._target = Path(os.path.realpath(self.path))  # a link stays one
        self._target.parent.mkdir(parents=True, exist_ok=True)
        beside = self._target.with_name(f".{self._target.name}.{os.getpid()}")
        raw = _Raw(self.option, str(self.path), os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        self._beside = beside
        return raw

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()

    def replace(self) -> None:
        if self._beside is not None:
            try:
                self._beside.replace(self._target)
            except OSError as error:
                raise _refusal(self.option, str(self.path), error) from None
            self._beside = None

    def discard(self) -> None:
        with suppress(SpecError, OSError):  # that it cannot be written was told, if that is why
            self.close()
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)
            self._beside = None


class _Raw(io.FileIO):
    """A descriptor whose errors name the file."""

    def __init__(self, option: str, name: str, descriptor: int) -> None:
        super().__init__(descriptor, "w")
        self._option = option
        self._name = name

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise _refusal(self._option, self._name, error) from None


def _refusal(option: str, name: str, error: OSError) -> SpecError:
    return SpecError(f"{option}: {name} cannot be written: {error.strerror}")


def _descriptor(name: str) -> int | None:
    """Of a path that stands for one that is open already: it goes on where that is, also in the middle of a file."""
    found = _DESCRIPTOR(name)
    return int(found[1]) if found else _OPEN_ALREADY.get(name)
