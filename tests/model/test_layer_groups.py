"""Layer groups: every layer once, in order, little left at the end, and few messages before."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.model.layer_groups import StreamRates, choose_layer_groups, group_ranges, last_group_limit

MiB = 1 << 20
RATES = st.one_of(st.none(), st.floats(1e5, 1e12))
STREAMS = st.builds(StreamRates, RATES, RATES, st.floats(0, 0.01))


def exposed_s(ends: tuple[int, ...], layer_bytes: int, rates: StreamRates) -> float:
    """What is on the wire after the last layer, by the clock: a group starts when it is computed and the wire free."""
    assert rates.link_bytes_per_s
    assert rates.produced_bytes_per_s
    wire_until = 0.0
    for first, end in group_ranges(ends):
        start = max(wire_until, end * layer_bytes / rates.produced_bytes_per_s)
        wire_until = start + rates.message_s + (end - first) * layer_bytes / rates.link_bytes_per_s
    return wire_until - ends[-1] * layer_bytes / rates.produced_bytes_per_s


@given(st.integers(1, 130), st.integers(1, 1 << 30), STREAMS)
def test_every_layer_is_in_one_group_in_order_and_the_last_group_keeps_to_its_limit(
    num_layers: int, layer_bytes: int, rates: StreamRates
) -> None:
    ends = choose_layer_groups(num_layers, layer_bytes, rates)
    assert [layer for first, end in group_ranges(ends) for layer in range(first, end)] == list(range(num_layers))
    first, end = group_ranges(ends)[-1]
    assert end - first <= last_group_limit(num_layers, layer_bytes, rates) <= max(1, -(-num_layers // 4))


@pytest.mark.parametrize(
    ("num_layers", "layer_bytes", "link", "produced", "ends"),
    [
        (32, 2 * MiB, 2e9, 5e8, (1, 7, 13, 19, 25, 29, 31, 32)),  # four times as fast as compute, two to be sure
        (32, 16 * MiB, 1e9, 1e8, tuple(range(1, 33))),  # a message costs next to nothing beside a layer
        (32, 4096, 1e9, 1e8, (8, 24, 32)),  # a message costs more than its bytes: few of them
        (32, MiB // 4, 1e8, 1e9, (1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 32)),  # slower: it starts at once
        (4, 2 * MiB, 2e9, 5e8, (1, 3, 4)),
        (1, 2 * MiB, 1e9, 1e8, (1,)),
    ],
)
def test_sizes_follow_from_what_was_measured(
    num_layers: int, layer_bytes: int, link: float, produced: float, ends: tuple[int, ...]
) -> None:
    assert choose_layer_groups(num_layers, layer_bytes, StreamRates(link, produced)) == ends


@pytest.mark.parametrize("num_layers", [16, 24, 32, 80])
@pytest.mark.parametrize("layer_bytes", [MiB // 4, 2 * MiB])
@pytest.mark.parametrize("speedup", [1.5, 3.0, 10.0, 100.0])
def test_over_a_faster_link_about_one_group_is_exposed_and_hardly_more_than_of_four_equal_ones(
    num_layers: int, layer_bytes: int, speedup: float
) -> None:
    rates = StreamRates(2e9, 2e9 / speedup)
    ends = choose_layer_groups(num_layers, layer_bytes, rates)
    last = ends[-1] - ([0, *ends])[-2]
    layer_s = layer_bytes / 2e9
    alone_s = rates.message_s + last * layer_s
    assert len(ends) <= num_layers * 2 // 3
    if last * layer_s * speedup >= alone_s:  # while the last group is computed, another one can leave
        assert exposed_s(ends, layer_bytes, rates) <= alone_s + len(ends) * layer_s  # rounding: a layer for each group
        quarters = tuple(range(num_layers // 4, num_layers + 1, num_layers // 4))
        assert exposed_s(ends, layer_bytes, rates) <= exposed_s(quarters, layer_bytes, rates) + layer_s


def test_groups_become_smaller_towards_the_end_over_a_faster_link() -> None:
    sizes = [end - first for first, end in group_ranges(choose_layer_groups(80, 2 * MiB, StreamRates(4e9, 1e9)))]
    assert all(size >= later for size, later in pairwise(sizes[1:]))  # the first one has what is left


@pytest.mark.parametrize("ends", [(), (0,), (2, 2), (3, 1)])
def test_ends_that_do_not_rise_are_refused(ends: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must rise"):
        group_ranges(ends)


@pytest.mark.parametrize(("num_layers", "layer_bytes"), [(0, 1), (1, 0)])
def test_no_layers_and_no_bytes_are_refused(num_layers: int, layer_bytes: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        choose_layer_groups(num_layers, layer_bytes)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused_by_name(rate: float) -> None:
    with pytest.raises(ValueError, match="produced_bytes_per_s"):
        StreamRates(None, rate)
