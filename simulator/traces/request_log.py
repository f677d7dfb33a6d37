"""Twinpool's own request log: JSON Lines, one for each request that a gateway ended. Written so, and read as a trace.

Knows the format, and no gateway: cluster/request_log.py fills it in. No line holds a word of a prompt or an answer.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from twinpool.core.limits import shown
from twinpool.core.messages import Goal
from twinpool.simulator.traces.counts import BadLine, read_seconds, read_tokens
from twinpool.simulator.traces.entry import Entry
from twinpool.simulator.traces.lines import Values

KEY = "twinpool_request_log"  # of each line; its value is the version
VERSION = 1
MAX_NAME = 128
_IS_HASH = re.compile("[0-9a-f]{1,16}").fullmatch


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """What became of one request; durations in seconds, by the gateway's clock unless a phase says otherwise.

    ``output_tokens`` is how many there were, whatever they might have been. ``prefix_hashes`` are 64-bit names of the
    prompt's leading pieces of ``hash_tokens`` tokens, equal only within one run of a cluster.
    """

    arrival_unix_s: float  # as the wall clock stood when the gateway started, plus arrival_s
    arrival_s: float  # since the gateway started, by a clock that is never set
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    goal_class: str
    goal: Goal
    ending: str  # completed, rejected, failed, cut (by its deadline) or cancelled
    why: str = ""
    tenant: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float = 0.0
    prefill_worker: str = ""
    decode_worker: str = ""
    placement: str = ""
    attempts: int = 1
    cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    handoff_s: float = 0.0
    wire_s: float = 0.0
    exposed_s: float = 0.0
    kv_bytes: int = 0
    hash_tokens: int = 0
    prefix_hashes: tuple[int, ...] = ()


def to_line(logged: LoggedRequest) -> str:
    """One line of the log, its newline too."""
    values: dict[str, Any] = {
        KEY: VERSION,
        "arrival_unix_s": round(logged.arrival_unix_s, 6),
        "arrival_s": round(logged.arrival_s, 6),
        "prompt_tokens": logged.prompt_tokens,
        "output_tokens": logged.output_tokens,
        "max_tokens": logged.max_tokens,
        "goal_class": logged.goal_class,
        "goal": {"ttft_s": logged.goal.ttft_s, "tpot_s": logged.goal.tpot_s},
        "tenant": logged.tenant,
        "ending": logged.ending,
        "why": logged.why,
        "ttft_s": _rounded(logged.ttft_s),
        "tpot_s": _rounded(logged.tpot_s),
        "e2e_s": _rounded(logged.e2e_s),
        "workers": {"prefill": logged.prefill_worker, "decode": logged.decode_worker},
        "placement": logged.placement,
        "attempts": logged.attempts,
        "cached_tokens": logged.cached_tokens,
        "kv_bytes": logged.kv_bytes,
        "phases": {
            name: _rounded(getattr(logged, name))
            for name in ("queue_s", "prefill_s", "handoff_s", "wire_s", "exposed_s")
        },
        "hash_tokens": logged.hash_tokens,
        "prefix_hashes": [f"{item:016x}" for item in logged.prefix_hashes],
    }
    return json.dumps(values, separators=(",", ":")) + "\n"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def read_entry(row: Values) -> Entry | None:
    """One line; None for a request of whose answer there was nothing: rejected, say. Raises BadLine."""
    if row.get(KEY) != VERSION:
        raise BadLine(f"{KEY} must be {VERSION}, the version that is read here, not {shown(row.get(KEY, ''))}")
    at_ns, prompt_tokens = read_seconds(row, "arrival_unix_s"), read_tokens(row, "prompt_tokens")
    output_tokens, max_tokens = read_tokens(row, "output_tokens", low=0), read_tokens(row, "max_tokens")
    if output_tokens > max_tokens:
        raise BadLine(f"output_tokens {output_tokens} is over max_tokens {max_tokens}")
    goal_class, tenant = _read_name(row, "goal_class"), _read_name(row, "tenant")
    hashes, hash_tokens = _read_hashes(row, prompt_tokens)
    if not output_tokens:
        return None
    return Entry(at_ns, prompt_tokens, output_tokens, max_tokens, goal_class, tenant, hashes, hash_tokens)


def _read_name(row: Values, name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise BadLine(f"{name} must be text of at most {MAX_NAME} characters, not {shown(value)}")
    return value


def _read_hashes(row: Values, prompt_tokens: int) -> tuple[tuple[int, ...], int]:
    texts = row.get("prefix_hashes") or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and _IS_HASH(text) for text in texts):
        raise BadLine(f"prefix_hashes must be a list of 64-bit numbers in hexadecimal, not {shown(texts)}")
    if not texts:
        return (), 0
    hash_tokens = read_tokens(row, "hash_tokens")
    if len(texts) * hash_tokens > prompt_tokens:
        raise BadLine(f"prefix_hashes has {len(texts)} pieces of {hash_tokens}, over {prompt_tokens} prompt tokens")
    return tuple(int(text, 16) for text in texts), hash_tokens
