"""Reads the numbers of a trace's line, strictly: what is no whole number of tokens, or no time, is told as it stands.

Knows limits, no format.
"""

import math
import re
from typing import Any

from twinpool.core.limits import shown


class BadLine(Exception):
    """A line is not what it must be; ``str()`` says why. Whoever reads the file catches it and adds where."""


MAX_TOKENS = 2**24
_DIGITS = re.compile(r"\s*[0-9]{1,9}\s*").fullmatch
_TIMES_END = 10**15
_DECIMAL = re.compile(r"\s*([0-9]{1,15})(?:\.([0-9]*))?\s*").fullmatch


def read_tokens(values: dict[str, Any], name: str, low: int = 1) -> int:
    """A number of tokens, from text or JSON. Raises BadLine for what is none."""
    value = values.get(name)
    if isinstance(value, str) and _DIGITS(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= MAX_TOKENS:
        return value
    raise BadLine(f"{name} must be a whole number from {low} to {MAX_TOKENS}, not {shown(values.get(name, ''))}")


def read_seconds(values: dict[str, Any], name: str, per_s: int = 1) -> int:
    """A time as whole nanoseconds: exact where it is text, to a microsecond where it is a float.

    Raises BadLine for what is none.

    Args:
        per_s: how many of its unit are a second.
    """
    value = values.get(name)
    unit_ns = 10**9 // per_s
    if isinstance(value, str) and (parts := _DECIMAL(value)):
        whole, fraction = parts.groups(default="")
        return int(whole) * unit_ns + int(fraction.ljust(9, "0")[:9] or 0) * unit_ns // 10**9
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TIMES_END:
        return value * unit_ns
    if isinstance(value, float) and math.isfinite(value) and 0 <= value < _TIMES_END:
        return round(value * unit_ns / 1000) * 1000  # a float of seconds since 1970 holds no more than microseconds
    raise BadLine(f"{name} must be a time from 0 to under {_TIMES_END:.0e}, not {shown(values.get(name, ''))}")
