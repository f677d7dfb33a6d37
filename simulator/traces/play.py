"""Requests of a trace as they come: a file's own times, moved and repeated, or times and lengths that are drawn.

Chance is an argument. Knows no file and no option.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice, repeat

import numpy as np
from numpy.typing import NDArray

from twinpool.simulator.trace import TraceRequest
from twinpool.simulator.traces.entry import Entry

DRAWN_AT_ONCE = 1024
_ROUND_STEP = 0x9E3779B97F4A7C15  # odd, so that no two rounds of 2**64 name a piece alike

Arrival = tuple[float, Entry]


def own_times(
    play: Callable[[], Iterator[Entry]], first_ns: int, factor: float, period_s: float | None = None
) -> Iterator[Arrival]:
    """Entries at their own times from the first one on, times ``factor``; again and again where there is a period.

    Prompts of a later round share nothing with those of an earlier one: their pieces get other names. All else is
    repeated as it is.

    Args:
        period_s: after which a round follows the one before, in the time that is played.
    """
    for turn in count():
        begin_s = 0.0 if period_s is None else turn * period_s
        for entry in play():
            entry = _renamed(entry, turn) if turn and entry.prefix_hashes else entry
            yield begin_s + (entry.at_ns - first_ns) / 1e9 * factor, entry
        if period_s is None:
            return


def _renamed(entry: Entry, turn: int) -> Entry:
    return entry._replace(prefix_hashes=tuple((item + turn * _ROUND_STEP) % 2**64 for item in entry.prefix_hashes))


def drawn_lengths(
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    lines: Sequence[int],
    rngs: Sequence[np.random.Generator],
) -> Iterator[Entry]:
    """Lengths drawn from a file's rows with replacement, without end.

    Args:
        lines: of each row; an entry has that of its prompt.
        rngs: one draws whole rows; two draw prompts and answers each on their own, which loses what they have to do
            with each other.
    """
    prompts, outputs, numbers = np.asarray(prompt_tokens), np.asarray(output_tokens), np.asarray(lines)
    while True:
        rows = [rng.integers(0, len(prompts), DRAWN_AT_ONCE) for rng in rngs]
        drawn = (prompts[rows[0]].tolist(), outputs[rows[-1]].tolist(), numbers[rows[0]].tolist())
        for prompt, output, line in zip(*drawn, strict=True):
            yield Entry(0, prompt, output, line=line)


def drawn_classes(rng: np.random.Generator, weighted: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Names of goal classes by weight, without end."""
    names = [name for name, _ in weighted]
    if len(names) == 1:
        yield from repeat(names[0])
    weights: NDArray[np.float64] = np.array([weight for _, weight in weighted])
    edges = np.cumsum(weights / weights.sum())[:-1]
    while True:
        for index in np.searchsorted(edges, rng.random(DRAWN_AT_ONCE), side="right").tolist():
            yield names[index]


def as_requests(arrivals: Iterator[Arrival], classes: Iterator[str] | None, max_tokens: int) -> Iterator[TraceRequest]:
    """Requests as they are offered.

    Args:
        classes: of goals, one for each; None leaves what the entry says, or "default".
        max_tokens: clients' limit where the entry has none, or the answer's length where that is over it; 0: no limit.
    """
    for arrival_s, entry in arrivals:
        _, prompt_tokens, output_tokens, own_max, own_class, tenant, hashes, hash_tokens, line = entry
        yield TraceRequest(
            arrival_s,
            prompt_tokens,
            output_tokens,
            own_max or (max(max_tokens, output_tokens) if max_tokens else 0),
            own_class or "default" if classes is None else next(classes),
            tenant,
            hashes,
            hash_tokens,
            line,
        )


def cut(requests: Iterator[TraceRequest], duration_s: float, most: int | None) -> Iterator[TraceRequest]:
    """At most so many, and only those before ``duration_s``."""
    for request in islice(requests, most):
        if request.arrival_s >= duration_s:
            return
        yield request
