"""The traces of Mooncake: JSON Lines of milliseconds, numbers of tokens, and names of the prompt's pieces.

Knows one line. A piece is 512 tokens, named such that equal names have equal tokens up to their end.
"""

from twinpool.core.limits import shown
from twinpool.simulator.traces.counts import BadLine, read_seconds, read_tokens
from twinpool.simulator.traces.entry import Entry
from twinpool.simulator.traces.lines import Values

KEYS = ("timestamp", "input_length", "output_length")
PIECE_TOKENS = 512


def read_entry(row: Values) -> Entry | None:
    """One line; None for one without an answer. The name of a last piece that is not full is left out.

    Raises:
        BadLine: a value is wrong, or the pieces are not those of so long a prompt.
    """
    at_ns = read_seconds(row, "timestamp", per_s=1000)
    prompt_tokens, output_tokens = read_tokens(row, "input_length"), read_tokens(row, "output_length", low=0)
    hashes = _read_hashes(row.get("hash_ids"), prompt_tokens)
    if not output_tokens:
        return None
    return Entry(at_ns, prompt_tokens, output_tokens, prefix_hashes=hashes, hash_tokens=PIECE_TOKENS if hashes else 0)


def _read_hashes(ids: object, prompt_tokens: int) -> tuple[int, ...]:
    if ids is None or ids == []:
        return ()
    if not isinstance(ids, list) or any(type(item) is not int or not 0 <= item < 2**64 for item in ids):
        raise BadLine(f"hash_ids must be a list of whole numbers, not {shown(ids)}")
    needed = -(-prompt_tokens // PIECE_TOKENS)
    if len(ids) != needed:
        raise BadLine(f"hash_ids has {len(ids)} pieces, and {prompt_tokens} tokens make {needed} of {PIECE_TOKENS}")
    return tuple(ids[: prompt_tokens // PIECE_TOKENS])
