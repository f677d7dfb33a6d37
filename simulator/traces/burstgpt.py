"""The BurstGPT traces: CSV of seconds and numbers of tokens, failed requests among them.

Knows one row; of the columns, those of model, session and kind of log are passed over.
"""

from twinpool.simulator.traces.counts import read_seconds, read_tokens
from twinpool.simulator.traces.entry import Entry
from twinpool.simulator.traces.lines import Values

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_entry(row: Values) -> Entry | None:
    """One row; None for a request that failed, which has no response tokens. Raises BadLine."""
    at_ns = read_seconds(row, "Timestamp")
    output_tokens = read_tokens(row, "Response tokens", low=0)
    prompt_tokens = read_tokens(row, "Request tokens", low=0 if output_tokens == 0 else 1)
    return Entry(at_ns, prompt_tokens, output_tokens) if output_tokens else None
