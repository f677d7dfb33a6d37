"""Lines come out by time, then by number, as far as a window reaches; a line beyond it is told, and nothing else is."""

from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.traces.entry import Entry, in_order


def play(times: list[int], window: int) -> list[tuple[int, int | str]]:
    rows = ((line, Entry(at_ns, 1, 1)) for line, at_ns in enumerate(times, start=1))
    return [(line, item if isinstance(item, str) else item.at_ns) for line, item in in_order(rows, window)]


@given(st.lists(st.integers(0, 20), max_size=30))
def test_a_window_as_long_as_the_file_sorts_it(times: list[int]) -> None:
    expected = sorted(enumerate(times, start=1), key=lambda item: (item[1], item[0]))
    assert play(times, max(1, len(times))) == expected


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 8))
def test_every_line_comes_out_once_in_order_or_is_refused(times: list[int], window: int) -> None:
    played = play(times, window)
    assert sorted(line for line, _ in played) == list(range(1, len(times) + 1))
    kept = [item for _, item in played if not isinstance(item, str)]
    assert kept == sorted(kept)
    for line, item in played:
        if isinstance(item, str):  # over ``window`` lines before it are later than it
            assert sum(other > times[line - 1] for other in times[: line - 1]) >= 1
            assert "is out of order" in item


def test_a_line_at_the_window_is_sorted_and_one_beyond_is_refused() -> None:
    assert play([10, 20, 30, 5], 3) == [(4, 5), (1, 10), (2, 20), (3, 30)]
    played = play([10, 20, 30, 40, 5], 3)
    assert [line for line, item in played if isinstance(item, str)] == [5]
    assert "before line 1, over 3 lines up" in str(played)
