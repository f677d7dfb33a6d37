"""Reads the JSON of one line more strictly than Python does, and says in our own words why a line is none.

Pure. Knows JSON, not what a batch has in it.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DIGITS = 640  # of a whole number: no field takes more than 20, and no setting makes Python read fewer than these


@dataclass(frozen=True, slots=True)
class Decoded:
    """A value, and the keys that stand twice in one object: in the outermost, and in those inside it."""

    value: Any
    repeated: tuple[str, ...] = ()
    repeated_inside: tuple[str, ...] = ()


def decode(raw: bytes) -> Decoded:
    """Read one line; what editors put at the beginning of a file (a BOM) is passed over.

    Raises:
        ValueError: it is no JSON, in words that need no more. RecursionError: it is nested too deeply.
    """
    seen = _Repeated()
    try:
        value = json.loads(
            raw.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_int=_whole, object_pairs_hook=seen.take
        )
    except json.JSONDecodeError as error:  # without its count of lines, of which there is one
        raise ValueError(f"{error.msg} at character {error.colno}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is no UTF-8") from None
    own = seen.last if isinstance(value, dict) else ()
    return Decoded(value, own, tuple(seen.all[: len(seen.all) - len(own)]))


class _Repeated:
    """The keys that were seen twice in an object; objects come from the inside out."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.last: tuple[str, ...] = ()  # of the object that came last

    def take(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        self.last = () if len(values) == len(pairs) else _twice(pairs)
        self.all += self.last
        return values


def _twice(pairs: list[tuple[str, Any]]) -> tuple[str, ...]:
    counts = Counter(key for key, _ in pairs)
    return tuple(key for key, count in counts.items() if count > 1)


def _whole(text: str) -> int:
    num_digits = len(text.removeprefix("-"))
    if num_digits > MAX_DIGITS:
        raise ValueError(f"it has a number of {num_digits} digits; at most {MAX_DIGITS} are read")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
