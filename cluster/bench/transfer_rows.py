"""The rows of `twinpool bench transfer`: what is made of the times of handoffs, raw transfers and prefills.

Pure arithmetic over times that others took; all of one round were taken one after the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from twinpool.cluster.bench.measures import percentiles, spread

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Handover:
    """One handoff; points in time of one clock, in seconds."""

    begun_s: float  # the source's engine tells of the request
    computed_s: float  # its KV is all there
    first_s: float  # the first group begins on the link
    last_s: float  # the last one has been taken
    adopted_s: float  # the target may decode
    released_s: float  # the source knows that
    wire_s: float  # some group was on the link

    @property
    def total_s(self) -> float:
        return self.adopted_s - self.begun_s

    @property
    def link_s(self) -> float:
        """Begin of the first group to the end of the last, gaps included."""
        return self.last_s - self.first_s

    @property
    def beyond_wire_s(self) -> float:
        return self.total_s - self.wire_s


@dataclass(frozen=True, slots=True)
class Round:
    """What one case, way of streaming and size were measured at, one after the other."""

    raw_s: float  # the same bytes, contiguous, on the same link
    ready: Handover  # of KV that was there already
    prefill_s: float  # a prefill alone
    produced: Handover  # of KV that such a prefill produced

    @property
    def exposed_s(self) -> float:
        """How much later the target could decode than the KV would have been there; a slower prefill included."""
        return self.produced.total_s - self.prefill_s

    @property
    def hidden_share(self) -> float:
        """1: the handover took no time beyond the prefill's; 0: all the time that the bytes take on the link."""
        return 1.0 - self.exposed_s / self.ready.link_s


def limited_raw_s(raw_s: float, kv_bytes: int, limit_bytes_per_s: int | None) -> float:
    """What a raw transfer takes behind the limiter, which lets it through at the limit or at its own pace."""
    return raw_s if limit_bytes_per_s is None else max(raw_s, kv_bytes / limit_bytes_per_s)


def row_of(kv_bytes: int, rounds: Sequence[Round], without_digest: Sequence[Round] | None) -> Values:
    """The measured part of a row: medians over the rounds, and how far single rounds were from them.

    Args:
        kv_bytes: of the request, as they lie in blocks. Rates are of these, however they are coded.
        without_digest: the same rounds of the case that differs in nothing but the digest; for its cost.
    """
    link_s = median(each.ready.link_s for each in rounds)
    raw_s = median(each.raw_s for each in rounds)
    ready = [each.ready for each in rounds]
    beyond = percentiles([1e3 * each.beyond_wire_s for each in ready])
    row: Values = {
        "gb_per_s": _gb_per_s(kv_bytes, link_s),
        "raw_gb_per_s": _gb_per_s(kv_bytes, raw_s),
        "fraction_of_raw": raw_s / link_s,
        "fraction_spread": spread([each.raw_s / each.ready.link_s for each in rounds]),
        "handover_fraction_of_raw": raw_s / median(each.total_s for each in ready),
        "beyond_wire_ms_p50": beyond["p50"],
        "beyond_wire_ms": beyond,
        "beyond_raw_ms_p50": median(1e3 * (each.ready.total_s - each.raw_s) for each in rounds),
        "handover_ms_p50": median(1e3 * each.total_s for each in ready),
        "wire_ms_p50": median(1e3 * each.wire_s for each in ready),
        "raw_ms_p50": 1e3 * raw_s,
        "released_ms_p50": median(1e3 * (each.released_s - each.begun_s) for each in ready),
        "hidden_share": median(each.hidden_share for each in rounds),
        "hidden_spread": spread([each.hidden_share for each in rounds]),
        "prefill_ms_p50": median(1e3 * each.prefill_s for each in rounds),
        "prefill_slowdown": median(
            (each.produced.computed_s - each.produced.begun_s) / each.prefill_s for each in rounds
        ),
        "exposed_ms_p50": median(1e3 * each.exposed_s for each in rounds),
        "runs": len(rounds),
        "digest_ratio": None,
        "digest_spread": None,
    }
    if without_digest is not None:
        ratios = [on.ready.total_s / off.ready.total_s for on, off in zip(rounds, without_digest, strict=True)]
        row |= {"digest_ratio": median(ratios), "digest_spread": spread(ratios)}
    return row


def add_crossovers(rows: Sequence[Values]) -> None:
    """Fill ``ratio_to_raw_codec`` and ``pays_below_gb_per_s`` of rows that differ from a raw one in the codec only."""
    for row in rows:
        raw = next((other for other in rows if other["codec"] == "raw" and _but_codec(other) == _but_codec(row)), None)
        lossy = raw is not None and row["codec"] != "raw"
        row["ratio_to_raw_codec"] = row["handover_ms_p50"] / raw["handover_ms_p50"] if lossy and raw else None
    for row in rows:
        same = [other for other in rows if _but_limiter(other) == _but_limiter(row)]
        points = [
            (other["raw_gb_per_s"], other["ratio_to_raw_codec"])
            for other in same
            if other["ratio_to_raw_codec"] is not None
        ]
        row["pays_below_gb_per_s"] = find_crossover(points)


def find_crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """The bandwidth at which a ratio of times passes 1, interpolated between logarithms of both.

    Args:
        points: (bandwidth, time with the codec / time without), any order.

    None: the ratio is on one side of 1 at every bandwidth measured, or there are fewer than two. Where it passes 1 more
    than once, the highest bandwidth below which it is under 1 counts.
    """
    ordered = sorted(points, reverse=True)
    for (fast, above), (slow, below) in pairwise(ordered):
        if below < 1.0 <= above:
            share = math.log(1.0 / below) / math.log(above / below)
            return math.exp(math.log(slow) + share * (math.log(fast) - math.log(slow)))
    return None


def _gb_per_s(num_bytes: int, seconds: float) -> float:
    return num_bytes / seconds / 1e9


def _but_codec(row: Values) -> tuple[Any, ...]:
    return (row["limiter"], *_but_both(row))


def _but_limiter(row: Values) -> tuple[Any, ...]:
    return (row["codec"], *_but_both(row))


def _but_both(row: Values) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("link", "digest", "streaming", "bytes", "source_tp", "target_tp"))
