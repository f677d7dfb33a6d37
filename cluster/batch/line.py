"""One line of a batch's input: a request, or why it is none.

Pure. Knows the batch format; what a body may say is openai_bodies' business.
"""

from dataclasses import dataclass
from typing import Any

from twinpool.cluster.batch.json_line import Decoded, decode
from twinpool.cluster.openai_bodies import Ask, Endpoint, read_body
from twinpool.core.errors import Internal, InvalidRequest
from twinpool.core.limits import shown

MAX_LINE_BYTES = 16 * 2**20  # a gateway takes messages far smaller than this

Key = str | int  # a line's custom_id, or its number where it has none


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line has no answer; ``param`` is the field at fault."""

    code: str
    message: str
    param: str | None = None


class Stumbled(Internal):
    """Our own code raised what nobody expected, over one request: the others go on, and the cluster is not to blame."""

    @classmethod
    def over(cls, error: Exception) -> "Stumbled":
        """With the exception as its cause, for the log."""
        stumbled = cls(f"{type(error).__name__}: {error}")
        stumbled.__cause__ = error
        return stumbled


@dataclass(frozen=True, slots=True)
class Line:
    """One line, from 1. ``custom_id`` is None where it cannot be told, and then there is a problem.

    A line over which our own code stumbled is left unanswered, for another run or another version.
    """

    number: int
    custom_id: str | None
    content: Ask | Problem | Stumbled
    body: Any = None

    @property
    def key(self) -> Key:
        """What the line is known by in the output."""
        return self.number if self.custom_id is None else self.custom_id


def read_line(number: int, raw: bytes) -> Line:
    """Read one line; whatever is wrong with it, or with us, is part of the value."""
    found = _fields(number, raw)
    if isinstance(found, Problem):
        return Line(number, None, found)
    fields = found.value
    custom_id = fields["custom_id"]
    try:
        _refuse_repeated(found)
        return Line(number, custom_id, _ask(fields), fields["body"])
    except InvalidRequest as error:
        return Line(number, custom_id, refusal(error))
    except RecursionError:
        return Line(number, custom_id, Problem("invalid_request", f"line {number} is nested too deeply"))
    except Exception as error:  # noqa: BLE001 - a line that nobody foresaw must not end the run of all the others
        return Line(number, custom_id, Stumbled.over(error))


def read_key(number: int, raw: bytes) -> Key:
    """The key of the line alone, which is all that the first look at an input needs."""
    found = _fields(number, raw)
    return number if isinstance(found, Problem) else str(found.value["custom_id"])


def refusal(error: InvalidRequest) -> Problem:
    """A request's problem, told as OpenAI tells it."""
    return Problem("invalid_request", str(error), error.field)


def _fields(number: int, raw: bytes) -> Decoded | Problem:
    """A line's fields, its custom_id checked."""
    if len(raw) > MAX_LINE_BYTES:
        return Problem("invalid_json", f"line {number} is longer than {MAX_LINE_BYTES} bytes")
    try:
        decoded = decode(raw)
    except RecursionError:
        return Problem("invalid_json", f"line {number} is nested too deeply")
    except ValueError as error:
        return Problem("invalid_json", f"line {number} is no JSON: {error}")
    fields = decoded.value
    if not isinstance(fields, dict):
        return Problem("invalid_json", f"line {number} is no JSON object, but {shown(fields)}")
    if "custom_id" not in fields:
        return Problem("invalid_custom_id", f"line {number} has no custom_id", "custom_id")
    if "custom_id" in decoded.repeated:
        return Problem("invalid_custom_id", f"line {number} has two custom_ids", "custom_id")
    custom_id = fields["custom_id"]
    if not isinstance(custom_id, str) or not custom_id:
        what = f"line {number} has the custom_id {shown(custom_id)}, which must be text"
        return Problem("invalid_custom_id", what, "custom_id")
    return decoded


def _refuse_repeated(decoded: Decoded) -> None:
    """Of two values under one key, nobody can say which was meant."""
    for key in (*decoded.repeated, *decoded.repeated_inside):
        raise InvalidRequest(key, "is there twice")


def _ask(fields: dict[str, Any]) -> Ask:
    for name in ("method", "url", "body"):
        if name not in fields:
            raise InvalidRequest(name, "is missing")
    unknown = sorted(set(fields) - {"custom_id", "method", "url", "body"})
    if unknown:
        raise InvalidRequest(unknown[0], "is not a key of a batch line: custom_id, method, url, body")
    if fields["method"] != "POST":
        raise InvalidRequest("method", f"must be POST, not {shown(fields['method'])}")
    if fields["url"] not in list(Endpoint):
        raise InvalidRequest("url", f"must be {' or '.join(Endpoint)}, not {shown(fields['url'])}")
    ask = read_body(Endpoint(fields["url"]), fields["body"])
    if ask.stream:
        raise InvalidRequest("stream", "is not possible in a batch: leave it out")
    return ask
