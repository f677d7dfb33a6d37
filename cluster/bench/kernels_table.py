"""Writes what the compiler said of the kernels into a document, as one table for each kernel.

Knows rows of cluster/bench/kernels.py and where in the document tables go; compiles nothing.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from twinpool.core.errors import InvalidRequest

Values = dict[str, Any]
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def rewrite_tables(document: Path, rows: Sequence[Values]) -> None:
    """Replace what stands between the marks by tables of these rows.

    Raises:
        InvalidRequest: the document cannot be read, or has no such marks. It was not changed.
    """
    try:
        before, _, rest = document.read_text().partition(BEGIN)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("document", f"cannot read {document}: {error}") from error
    _, mark, after = rest.partition(END)
    if not mark:
        raise InvalidRequest("document", f"{document} has no lines {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n{END}{after}")


def tables(rows: Sequence[Values]) -> str:
    """One table for each kernel: a line for each variant, a column for each target."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    by_kernel = sorted(rows, key=lambda row: row["kernel"])
    return "\n".join(
        _table(kernel, list(of_kernel), targets)
        for kernel, of_kernel in groupby(by_kernel, key=lambda row: row["kernel"])
    )


def _table(kernel: str, rows: Sequence[Values], targets: Sequence[str]) -> str:
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["variant"], {})[row["target"]] = _cell(row)
    lines = [f"### {kernel}", "", f"| variant | {' | '.join(targets)} |", f"|---|{'---|' * len(targets)}"]
    for variant, of_target in cells.items():
        lines.append(f"| {variant} | {' | '.join(of_target.get(target, '') for target in targets)} |")
    return "\n".join([*lines, ""])


def _cell(row: Values) -> str:
    if row["registers"] is None:
        return "fails"
    cell = f"{row['registers']} / {row['shared_bytes'] / 1024:.3g} / {row['programs_per_sm']}"
    return f"{cell} !" if row["faults"] else cell
