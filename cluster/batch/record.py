"""The lines of a batch's output: how an answer or a problem is written, and how they are read back.

Pure. Every line that is written is final: its request is never tried again.
"""

from dataclasses import dataclass
from typing import Any

from twinpool.cluster.batch.json_line import decode
from twinpool.cluster.batch.line import Key, Line, Problem
from twinpool.cluster.json_text import json_text
from twinpool.core.limits import shown

PREFIX = b'{"id": "batch_req_'  # how every line begins


@dataclass(frozen=True, slots=True)
class Record:
    """What is read back of a line: whose it is, and whether it has an answer."""

    key: Key
    is_ok: bool


def answer_record(line: Line, request_id: str, body: dict[str, Any]) -> bytes:
    """The output line of an answered request."""
    return _encode(line, {"status_code": 200, "request_id": request_id, "body": body}, None)


def problem_record(line: Line, problem: Problem) -> bytes:
    """The output line of a request that can have no answer."""
    told = {"code": problem.code, "message": problem.message, "param": problem.param, "line": line.number}
    return _encode(line, None, told)


def _encode(line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    fields = {"id": f"batch_req_{line.number}", "custom_id": line.custom_id, "response": response, "error": error}
    return json_text(fields).encode() + b"\n"  # ASCII: lone surrogates and odd line ends of texts stay escaped


def read_record(raw: bytes) -> Record:
    """Read a whole line of an output.

    Raises:
        ValueError: it is no line of a batch's output.
    """
    try:
        fields = decode(raw).value
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(fields, dict) or not {"custom_id", "response", "error"} <= set(fields):
        raise ValueError(f"is no answer of a batch, but {shown(fields)}")
    problem = fields["error"]
    key = fields["custom_id"]
    if key is None and isinstance(problem, dict):
        key = problem.get("line")
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise ValueError("has neither a custom_id nor the number of a line")
    return Record(key, problem is None)
