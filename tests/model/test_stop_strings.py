"""However a text is cut into pieces, what comes out is the text before the first stop string, and never too much."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twinpool.model.stop_strings import StopStrings

letters = st.text(st.sampled_from("abé😀"), max_size=30)
some_stops = st.lists(st.text(st.sampled_from("abé😀"), min_size=1, max_size=5), min_size=1, max_size=4)


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Brute force: (the text before the stop string that ends first, whether there is one)."""
    for end in range(len(text) + 1):
        ended = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(ended)], True
    return text, False


def shown(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, bool]:
    watch = StopStrings(stops)
    text = "".join([watch.push(piece) for piece in pieces]) + watch.finish()
    return text, watch.is_complete


@given(letters, some_stops, st.lists(st.integers(0, 30)))
@example("abab", ["abb", "bab"], [1, 2, 3])
def test_any_pieces_give_what_a_search_of_the_whole_text_gives(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[first:end] for first, end in pairwise(bounds)]
    assert shown(stops, pieces) == shown(stops, list(text)) == before_stop(text, stops)


@given(letters, some_stops)
def test_nothing_is_shown_that_could_be_the_beginning_of_a_stop_string(text: str, stops: list[str]) -> None:
    watch, out = StopStrings(stops), ""
    for position, character in enumerate(text, start=1):
        out += watch.push(character)
        if watch.is_complete:
            return
        rest = text[:position]
        held = max(len(stop[:n]) for stop in stops for n in range(len(stop)) if rest.endswith(stop[:n]))
        assert out == rest[: position - held]  # and nothing is held back without need


@pytest.mark.parametrize(
    ("stops", "text", "before"),
    [
        (["abcd", "bc"], "xabcd", "xa"),  # the one that is complete first
        (["bc", "abc"], "xabc", "x"),  # of two that end together the longer
        (["aab"], "aaab", "a"),
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo"),
        (["日本"], "今日日本", "今日"),
    ],
)
def test_which_stop_string_wins(stops: list[str], text: str, before: str) -> None:
    assert shown(stops, list(text)) == shown(stops, [text]) == (before, True)


def test_what_was_held_back_comes_at_the_end() -> None:
    watch = StopStrings(["END."])
    assert watch.push("the EN") == "the "
    assert watch.push("D") == ""
    assert watch.finish() == "END"
    assert not watch.is_complete


def test_after_a_stop_string_nothing_comes() -> None:
    watch = StopStrings(["."])
    assert watch.push("a.b") == "a"
    assert (watch.push("c."), watch.finish()) == ("", "")
