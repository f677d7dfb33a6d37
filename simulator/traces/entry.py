"""A line of a trace that has times of its own, and the order such lines are played in.

Knows no format: each reads its own lines into these.
"""

from collections.abc import Iterator
from heapq import heappop, heappush, heappushpop
from typing import NamedTuple


class Entry(NamedTuple):
    """One request of a file. ``at_ns`` counts from any point in time, the same for all lines of the file.

    The other fields are those of TraceRequest; an empty ``goal_class`` says nothing.
    """

    at_ns: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int = 0
    goal_class: str = ""
    tenant: str = ""
    prefix_hashes: tuple[int, ...] = ()
    hash_tokens: int = 0
    line: int = 0


def in_order(rows: Iterator[tuple[int, Entry]], window: int) -> Iterator[tuple[int, Entry | str]]:
    """The same lines by time, then by number, where none stands over ``window`` lines too late; or what is wrong.

    Holds ``window`` lines at once.
    """
    waiting: list[tuple[int, int, Entry]] = []
    last_ns, last_line = -(2**63), 0
    for line, entry in rows:
        if entry.at_ns < last_ns:
            yield line, f"is out of order: it comes before line {last_line}, over {window} lines up"
            continue
        item = (entry.at_ns, line, entry)
        if len(waiting) < window:
            heappush(waiting, item)
            continue
        last_ns, last_line, first = heappushpop(waiting, item)
        yield last_line, first
    while waiting:
        _, line, entry = heappop(waiting)
        yield line, entry
