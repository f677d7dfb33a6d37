"""The LLM inference traces of Azure (2023, 2024): CSV of invocation times and numbers of tokens.

Knows one row; times without a zone are UTC.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from twinpool.core.limits import shown
from twinpool.simulator.traces.counts import BadLine, read_tokens
from twinpool.simulator.traces.entry import Entry
from twinpool.simulator.traces.lines import Values

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_TIME = re.compile(
    r"\s*(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d:\d\d)?\s*", re.ASCII
).fullmatch


def read_entry(row: Values) -> Entry | None:
    """One row; None for one without an answer. Raises BadLine."""
    at_ns = read_timestamp(row.get("TIMESTAMP", ""))
    prompt_tokens, output_tokens = read_tokens(row, "ContextTokens"), read_tokens(row, "GeneratedTokens", low=0)
    return Entry(at_ns, prompt_tokens, output_tokens) if output_tokens else None


def read_timestamp(text: object) -> int:
    """Nanoseconds since 1970 of ``2023-11-16 18:15:46.6805900``, with or without fraction and zone. Raises BadLine."""
    parts = _TIME(text) if isinstance(text, str) else None
    if parts is not None:
        date, time, fraction, zone = parts.groups()
        try:
            whole_s = _unix_s(f"{date} {time}{'+00:00' if zone in (None, 'Z') else zone}")
            return whole_s * 10**9 + int((fraction or "0").ljust(9, "0"))
        except (ValueError, OverflowError):
            pass
    raise BadLine(f"TIMESTAMP must be a time such as 2023-11-16 18:15:46.6805900, not {shown(text)}")


@lru_cache(maxsize=16)
def _unix_s(text: str) -> int:
    """Rows in order share their second with their neighbours, so most need no calendar."""
    return (datetime.fromisoformat(text) - _EPOCH) // _SECOND
