"""Pieces of one answer, in any order and any number, make that answer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.core.messages import FinishReason
from twinpool.core.sampling import TokenLogprobs
from twinpool.router.token_stream import Taken, TokenStream

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def test_tokens_beyond_a_gap_wait_for_it() -> None:
    stream = TokenStream(10)
    assert stream.take(1, (8, 9), None) == Taken((), None)
    assert len(stream) == 0
    assert stream.take(0, (7,), None) == Taken((7, 8, 9), None)


def test_forgotten_tokens_do_not_come_back() -> None:
    stream = TokenStream(10)
    stream.take(1, (8,), STOP)
    stream.forget_early()
    assert stream.take(0, (7,), None) == Taken((7,), None)


def test_repeated_tokens_are_dropped() -> None:
    stream = TokenStream(10, (1, 2))
    assert stream.take(0, (1, 2), None) == Taken((), None)
    assert stream.take(1, (2, 3), None) == Taken((3,), None)
    assert stream.token_ids == (1, 2, 3)


def test_an_end_counts_only_where_the_stream_is() -> None:
    stream = TokenStream(10, (1, 2, 3))
    assert stream.take(0, (1, 2), STOP) == Taken((), None)
    assert stream.take(3, (), STOP) == Taken((), STOP)


def test_the_limit_ends_the_stream_and_cuts_what_is_beyond() -> None:
    assert TokenStream(2).take(0, (1, 2), None) == Taken((1, 2), LENGTH)
    assert TokenStream(2).take(0, (1, 2), STOP) == Taken((1, 2), STOP)
    assert TokenStream(2).take(0, (1, 2, 3), STOP) == Taken((1, 2), LENGTH)


def logprobs_of(*token_ids: int) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(token_id, -0.5) for token_id in token_ids)


def test_logprobs_are_delayed_dropped_and_cut_as_their_tokens_are() -> None:
    stream = TokenStream(5)
    assert stream.take(2, (9, 10), None, logprobs_of(9, 10)) == Taken()
    assert stream.take(0, (7, 8), None, logprobs_of(7, 8)) == Taken((7, 8, 9, 10), None, logprobs_of(7, 8, 9, 10))
    assert stream.take(2, (9, 10, 11, 12), STOP, logprobs_of(9, 10, 11, 12)) == Taken((11,), LENGTH, logprobs_of(11))


def test_forgotten_tokens_leave_no_logprobs_behind() -> None:
    stream = TokenStream(10)
    stream.take(1, (8,), None, logprobs_of(8))
    stream.forget_early()
    assert stream.take(0, (7, 66), None, logprobs_of(7, 66)) == Taken((7, 66), None, logprobs_of(7, 66))


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
        logprobs = tuple(TokenLogprobs(token_id, -1.0) for token_id in piece)
        taken = stream.take(first, piece, expected_end if first + size >= length else None, logprobs)
        assert tuple(logprob.token_id for logprob in taken.logprobs) == taken.token_ids
        given_to_client += taken.token_ids
        ends += [taken.finish_reason] if taken.finish_reason else []
        assert tuple(given_to_client) == answer[: len(given_to_client)] == stream.token_ids
    assert tuple(given_to_client) == answer
    assert ends == [expected_end]
