"""Reads one JSON object of a model's directory, value by value, and refuses a bad one by file and field.

Knows JSON and ranges of numbers; knows nothing of what a field means.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from twinpool.core.errors import SpecError

MAX_WHOLE = 2**31 - 1
MAX_REAL = 1e30


class Fields:
    """Named values with where they came from, so that every complaint can name both."""

    def __init__(self, where: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self.where = where
        self.values = values
        self._prefix = prefix

    def get(self, name: str, default: Any = None) -> Any:
        """The value; JSON's null counts as absent."""
        value = self.values.get(name)
        return default if value is None else value

    def given(self, name: str, default: Any) -> Any:
        """The value, null (None) if the file says so; ``default`` only where the file says nothing."""
        return self.values.get(name, default)

    def section(self, name: str) -> "Fields":
        """An object inside this one; an absent one is empty."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            self.refuse(name, value, "must be an object")
        return Fields(self.where, value, f"{self._prefix}{name}.")

    def whole(self, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_WHOLE) -> int:
        """An integer in ``[least, most]``."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            must = "a positive whole number" if least == 1 else f"a whole number of at least {least}"
            self.refuse(name, value, f"must be {must}" + (f", at most {most}" if most < MAX_WHOLE else ""))
        return value

    def real(self, name: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number, at least ``least``, or above zero where that is zero."""
        value = self.get(name, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value <= 0 or not least <= value < MAX_REAL:  # NaN is never inside a range
            must = f"a number of at least {least:g}" if least else "a positive number"
            self.refuse(name, value, f"must be {must}")
        return float(value)

    def optional_real(self, name: str) -> float | None:
        """As ``real``, or None where the file has none."""
        return None if self.get(name) is None else self.real(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "must be true or false")
        return value

    def refuse(self, name: str, value: Any, rule: str) -> NoReturn:
        """Raise ``SpecError`` about one field."""
        raise SpecError(f"{self.where}: {self._prefix}{name} {value!r} {rule}")


def read_fields(file: Path) -> Fields:
    """Read a file that holds one JSON object.

    Raises:
        SpecError: it cannot be read, or holds something else. Names the file.
    """
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise SpecError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise SpecError(f"{file}: is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise SpecError(f"{file}: is not a JSON object")
    return Fields(str(file), values)
