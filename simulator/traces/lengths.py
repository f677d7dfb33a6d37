"""How long prompts and answers of a load are: from a CSV or JSON Lines file, told by line where it is wrong.

Knows numbers of tokens only; other columns (a trace's times, say) are passed over.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from twinpool.core.errors import SpecError
from twinpool.simulator.traces.counts import BadLine, read_tokens
from twinpool.simulator.traces.lines import Findings, Values, csv_rows, first_line, is_json, json_rows, split_header

COLUMNS = (  # what files call the tokens of a prompt and of its answer
    ("prompt_tokens", "new_tokens"),
    ("prompt_tokens", "output_tokens"),
    ("num_prefill_tokens", "num_decode_tokens"),  # Sarathi-Serve, Vidur
    ("est_prompt_tokens", "est_output_tokens"),  # estimated from characters
)


class Length(NamedTuple):
    """Tokens of one request."""

    prompt_tokens: int
    new_tokens: int


def read_lengths(path: Path, max_model_len: int | None = None) -> tuple[Length, ...]:
    """The requests of a file, in its order.

    Args:
        max_model_len: most tokens of one request, prompt and answer together, where there is such a limit.

    Raises:
        SpecError: the file cannot be read, holds no request, or has bad lines; one ``FILE:LINE: reason`` each.
    """
    findings = Findings(path)
    lengths = []
    for line, length in length_rows(path, max_model_len):
        if isinstance(length, str):
            findings.add(line, length)
        else:
            lengths.append(length)
    findings.refuse()
    if not lengths:
        raise SpecError(f"{path}: holds no request")
    return tuple(lengths)


def length_rows(path: Path, max_model_len: int | None = None) -> Iterator[tuple[int, Length | str]]:
    """Each row's number and lengths, or what is wrong with it, one at a time. Blank lines are passed over.

    Raises:
        SpecError: the file cannot be read, or its header names no columns that are known.
    """
    begin = first_line(path)
    is_lines = is_json(begin) or path.suffix == ".jsonl"
    columns = None if is_lines else length_columns(split_header(begin))
    for line, row in json_rows(path) if is_lines else csv_rows(path, COLUMNS):
        if isinstance(row, str):
            yield line, row
            continue
        columns = columns or length_columns(row) or COLUMNS[0]
        try:
            yield line, _length(row, columns, max_model_len)
        except BadLine as why:
            yield line, str(why)


def length_columns(names: Collection[str]) -> tuple[str, str] | None:
    """The pair of columns that holds lengths, where there is one."""
    return next((pair for pair in COLUMNS if all(name in names for name in pair)), None)


def _length(row: Values, columns: tuple[str, str], max_model_len: int | None) -> Length:
    prompt_tokens, new_tokens = read_tokens(row, columns[0]), read_tokens(row, columns[1])
    if max_model_len is not None and prompt_tokens + new_tokens > max_model_len:
        raise BadLine(f"{prompt_tokens} + {new_tokens} tokens are over the model's max_model_len {max_model_len}")
    return Length(prompt_tokens, new_tokens)
