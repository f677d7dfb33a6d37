"""The kinds of value that a cluster YAML holds, each with its limits, and how a refusal is worded.

Knows no section of the file; core/spec.py puts these together.
"""

import ipaddress
import math
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from twinpool.core.limits import NAME_PATTERN
from twinpool.core.messages import MAX_GOAL_S

NOT_YET = "is not supported by this version"
MAX_PORT = 65_535
UNITS = {"": 1, "B": 1} | {f"{c}iB": 1024**i for i, c in enumerate("KMGT", 1)}
UNITS |= {f"{c}B": 1000**i for i, c in enumerate("KMGT", 1)}

KeyPath = tuple[str | int, ...]


class Problem(NamedTuple):
    """One thing wrong: the keys that lead to it from the root, and what is wrong there."""

    path: KeyPath
    what: str


def dotted(path: KeyPath) -> str:
    """``("pools", "prefill", "workers")`` as ``pools.prefill.workers``; odd keys are quoted."""
    return ".".join(str(key) if re.fullmatch(r"[\w-]{1,60}", str(key)) else shown(key) for key in path)


def shown(value: object) -> str:
    """A value as YAML would spell it, in one short line."""
    text = {"True": "true", "False": "false", "None": "nothing"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse(problems: list[Problem]) -> None:
    """Fail a validator with all of ``problems``, if any; their paths start at the value it validates."""
    if problems:
        text = "; ".join(f"{dotted(problem.path)}: {problem.what}" for problem in problems)
        raise PydanticCustomError("problems", "{text}", {"text": text, "problems": problems})


def _wrong(what: str) -> PydanticCustomError:
    """The refusal of one value; ``what`` is shown as it is."""
    return PydanticCustomError("problems", "{text}", {"text": what, "problems": [Problem((), what)]})


def not_yet(*later: str) -> BeforeValidator:
    """Refuse the words that later versions will know, more helpfully than as unknown ones."""

    def check(value: object) -> object:
        if value in later:
            raise _wrong(f"{value} {NOT_YET}")
        return value

    return BeforeValidator(check)


def only(allowed: object) -> AfterValidator:
    """Refuse every value but the one that this version has."""

    def check(value: object) -> object:
        if value != allowed:
            raise _wrong(f"{shown(value)} {NOT_YET}, only {shown(allowed)}")
        return value

    return AfterValidator(check)


def _parse_bytes(value: object) -> object:
    """``"256MiB"`` as 268435456; whole numbers pass through."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)", value) if isinstance(value, str) else None
    if match is None or match[2] not in UNITS:
        raise _wrong(f"must be a size such as 256MiB or a whole number of bytes, not {shown(value)}")
    return math.floor(float(match[1]) * UNITS[match[2]])


def _check_threads(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1024):
        return value
    raise _wrong(f"must be auto or a whole number from 1 to 1024, not {shown(value)}")


def parse_cores(text: str) -> tuple[int, ...]:
    """``"0-3,8"`` as (0, 1, 2, 3, 8), in the order given; "" as none.

    Raises:
        PydanticCustomError: the text is no list of cores, or names one twice.
    """
    cores: list[int] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip(" "))
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _wrong(f"must be CPU cores such as 0-3,8, not {shown(text)}")
        cores += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(cores)) < len(cores):
        raise _wrong(f"names a core twice: {shown(text)}")
    return tuple(cores)


def _read_cores(value: object) -> object:
    """One core may be written as a number; what parse_cores refuses is refused here."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise _wrong(f"must be CPU cores such as 0-3,8, not {shown(value)}")
    parse_cores(text)
    return text


def _check_power_of_two(value: int) -> int:
    if value & (value - 1):
        raise _wrong(f"must be a power of two, not {value}")
    return value


def _check_ip_address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or address.is_unspecified or address.is_multicast:
        raise _wrong(f"must be one IP address of this machine, not {shown(value)}")
    return value


def _check_ray_address(value: str) -> str:
    match = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", value)
    if value not in ("local", "auto") and (match is None or not 1 <= int(match[1]) <= MAX_PORT):
        raise _wrong(f"must be local, auto or HOST:PORT, not {shown(value)}")
    return value


_SIZE_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,6})? ?([KMGT]i?B|B)?$"},
    ]
}
Bytes = Annotated[int, BeforeValidator(_parse_bytes), Field(ge=1, le=2**50), WithJsonSchema(_SIZE_SCHEMA)]
Threads = Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["auto"], BeforeValidator(_check_threads)]
_CORES_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": 9999},
        {"type": "string", "pattern": r"^( *[0-9]{1,4}(-[0-9]{1,4})? *(, *[0-9]{1,4}(-[0-9]{1,4})? *)*)?$"},
    ]
}
Cores = Annotated[str, BeforeValidator(_read_cores), WithJsonSchema(_CORES_SCHEMA)]
PowerOfTwo = Annotated[int, AfterValidator(_check_power_of_two)]
Port = Annotated[int, Field(ge=0, le=MAX_PORT)]
Seconds = Annotated[float, Field(gt=0, le=MAX_GOAL_S, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
IPAddress = Annotated[str, AfterValidator(_check_ip_address)]
RayAddress = Annotated[str, AfterValidator(_check_ray_address)]
OneForNow = Annotated[int, Field(ge=1, le=1024, json_schema_extra={"const": 1}), only(1)]
Hardware = Literal["A100-80GB", "H100-SXM", "H200", "B200", "L4", "L40S", "A10G", "MI300X"]  # of router/hardware.py
