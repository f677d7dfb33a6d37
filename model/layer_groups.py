"""Chooses which layers of a step's KV leave together, so that as little as possible is left to send when compute ends.

Pure arithmetic. Knows no link, no runner and no clock: what was measured of them is an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite

MESSAGE_S = 0.6e-3  # what a group costs beside its bytes: measured 0.52 to 0.67 ms over gloo, one small group at a time
LINK_BYTES_PER_S = 1.8e9  # of gloo on loopback: what is taken for a link that has not been measured
MESSAGE_SHARE = 0.1  # of its time on the link, that a group may cost beside its bytes: a larger one gains little
MARGIN = 2.0  # by which a link may be slower than it was measured: others use it too
MAX_SHARE = 0.5  # of all layers, in one group
LAST_SHARE = 0.25  # of all layers, in the last group
_UNKNOWN_RATIO = 4.0  # of link to production, while that was not measured


@dataclass(frozen=True, slots=True)
class StreamRates:
    """What streaming costs here; a rate that nobody has measured yet is None."""

    link_bytes_per_s: float | None = None  # raw KV on the link
    produced_bytes_per_s: float | None = None  # raw KV that prefills make
    message_s: float = MESSAGE_S  # of one group, whatever its size

    def __post_init__(self) -> None:
        for name in ("link_bytes_per_s", "produced_bytes_per_s"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < inf:
                raise ValueError(f"{name} is {value}; it must be above 0 and finite")
        if not (isfinite(self.message_s) and self.message_s >= 0.0):
            raise ValueError(f"message_s is {self.message_s}; it must not be negative")


UNMEASURED = StreamRates()

Growth = Callable[[int], float]  # a group's size -> the size of the one that is chosen after it


def last_group_limit(num_layers: int, layer_bytes: int, rates: StreamRates = UNMEASURED) -> int:
    """The most layers that the last group may have.

    With fewer layers than cost what the group costs beside its bytes, that would be most of what is exposed; and a
    group must take longer to compute than one of the same size takes on the link, or those before it pile up. With
    more, there are bytes that could have left earlier. A quarter of the layers at most, and one at least.
    """
    _check_size(num_layers, layer_bytes)
    wire_s, compute_s = _layer_times(layer_bytes, rates)
    wanted = ceil(rates.message_s / wire_s)
    if wire_s < compute_s:
        wanted = max(wanted, floor(rates.message_s / (compute_s - wire_s)) + 1)
    return max(1, min(wanted, ceil(LAST_SHARE * num_layers)))


def choose_layer_groups(num_layers: int, layer_bytes: int, rates: StreamRates = UNMEASURED) -> tuple[int, ...]:
    """Ends of the layer groups of one step: group ``i`` is layers ``[ends[i - 1], ends[i])``, the first from 0.

    What is exposed after the last layer is the last group, if the one before is through by then. So sizes are chosen
    from the end: each group is the largest that the link takes, with a margin, while the one behind it is computed.
    Over a link that is slower than the KV is produced the wire time itself is exposed, so there the link must start
    early and never idle: sizes grow from the front, each group as large as is computed while the one before it is on
    the wire. No group is larger than it takes for its message to cost little. Sizes are rounded up, so a group may be
    late by part of a layer.

    Args:
        layer_bytes: of one layer of one step: a prefill chunk's blocks.

    Raises:
        ValueError: there is no layer, or it has no bytes.
    """
    limit = last_group_limit(num_layers, layer_bytes, rates)
    wire_s, compute_s = _layer_times(layer_bytes, rates)
    enough = ceil(rates.message_s / (MESSAGE_SHARE * wire_s))
    most = max(limit, min(enough, floor(MAX_SHARE * num_layers)))
    if wire_s < compute_s:
        sizes = _from_the_end(num_layers, limit, most, lambda size: (size * compute_s - rates.message_s) / wire_s)
    else:
        sizes = _from_the_front(num_layers, limit, most, lambda size: (rates.message_s + size * wire_s) / compute_s)
    ends: list[int] = []
    for size in sizes:
        ends.append(size + (ends[-1] if ends else 0))
    return tuple(ends)


def group_ranges(ends: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The groups as ranges ``[first, end)``.

    Raises:
        ValueError: the ends do not rise from above 0.
    """
    ranges = tuple(zip((0, *ends), ends, strict=False))
    if not ranges or any(first >= end for first, end in ranges):
        raise ValueError(f"ends of layer groups must rise from above 0, not {ends}")
    return ranges


def _from_the_end(num_layers: int, last: int, most: int, behind: Growth) -> list[int]:
    sizes = [last]
    while (left := num_layers - sum(sizes)) > 0:
        hidden = behind(sizes[-1])
        grown = max(sizes[-1], ceil(hidden / MARGIN))
        sizes.append(min(most, left, grown if hidden >= sizes[-1] else most))  # what nothing hides, in few messages
    return sizes[::-1]


def _from_the_front(num_layers: int, first: int, most: int, ahead: Growth) -> list[int]:
    sizes = [first]
    while (left := num_layers - sum(sizes)) > 0:
        grown = min(most, max(sizes[-1], ceil(ahead(sizes[-1]))))
        sizes.append(min(grown, left - first if left > first else left))
    return sizes


def _layer_times(layer_bytes: int, rates: StreamRates) -> tuple[float, float]:
    """Seconds of one layer on the wire, and until the next one is computed."""
    link = rates.link_bytes_per_s or LINK_BYTES_PER_S
    produced = rates.produced_bytes_per_s or link / _UNKNOWN_RATIO
    return layer_bytes / link, layer_bytes / produced


def _check_size(num_layers: int, layer_bytes: int) -> None:
    if num_layers < 1 or layer_bytes < 1:
        raise ValueError(f"{num_layers} layers of {layer_bytes} bytes: both must be at least 1")
