"""Pieces of one answer, in any order and any number, make that answer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.core.messages import FinishReason
from twinpool.router.token_stream import TokenStream

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def test_tokens_beyond_a_gap_wait_for_it() -> None:
    stream = TokenStream(10)
    assert stream.take(1, (8, 9), None) == ((), None)
    assert len(stream) == 0
    assert stream.take(0, (7,), None) == ((7, 8, 9), None)


def test_forgotten_tokens_do_not_come_back() -> None:
    stream = TokenStream(10)
    stream.take(1, (8,), STOP)
    stream.forget_early()
    assert stream.take(0, (7,), None) == ((7,), None)


def test_repeated_tokens_are_dropped() -> None:
    stream = TokenStream(10, (1, 2))
    assert stream.take(0, (1, 2), None) == ((), None)
    assert stream.take(1, (2, 3), None) == ((3,), None)
    assert stream.token_ids == (1, 2, 3)


def test_an_end_counts_only_where_the_stream_is() -> None:
    stream = TokenStream(10, (1, 2, 3))
    assert stream.take(0, (1, 2), STOP) == ((), None)
    assert stream.take(3, (), STOP) == ((), STOP)


def test_the_limit_ends_the_stream_and_cuts_what_is_beyond() -> None:
    assert TokenStream(2).take(0, (1, 2), None) == ((1, 2), LENGTH)
    assert TokenStream(2).take(0, (1, 2), STOP) == ((1, 2), STOP)
    assert TokenStream(2).take(0, (1, 2, 3), STOP) == ((1, 2), LENGTH)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 5)), max_size=25), st.booleans())
def test_any_pieces_give_a_prefix_and_all_of_them_the_whole(
    length: int, cuts: list[tuple[int, int]], stops: bool
) -> None:
    answer = tuple(range(100, 100 + length))
    stream = TokenStream(length + stops)
    expected_end = STOP if stops else LENGTH
    given_to_client: list[int] = []
    ends: list[FinishReason] = []
    for first, size in [*((min(first, length), size) for first, size in cuts), (0, length)]:
        if ends:
            break
        piece = answer[first : first + size]
        fresh, finish = stream.take(first, piece, expected_end if first + size >= length else None)
        given_to_client += fresh
        ends += [finish] if finish else []
        assert tuple(given_to_client) == answer[: len(given_to_client)] == stream.token_ids
    assert tuple(given_to_client) == answer
    assert ends == [expected_end]
