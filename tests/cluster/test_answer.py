"""However an answer's tokens arrive, the client gets the same text, tokens and logprobs, cut at the same place."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.modelled_text import Expected, expected_answer, text_of, text_tokenizer
from twinpool.cluster.answer import Answer
from twinpool.cluster.flight import Piece
from twinpool.cluster.intake import Call
from twinpool.core.errors import Internal
from twinpool.core.messages import FinishReason, Goal, Request
from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.protos.convert import logprobs_to_proto
from twinpool.protos.twinpool.v1 import generation_pb2 as pb

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
PROMPT = (300, 301, 302)


def make_call(echo: str = "", shows_prompt_ids: bool = False, **sampling: Any) -> Call:
    params = SamplingParams(**({"seed": 1, "temperature": 0.0} | sampling))
    request = Request("r", 1, PROMPT, len(PROMPT), params, Goal(1, 1))
    return Call((request,), params, PROMPT, echo, shows_prompt_ids)


def logprobs_of(token_ids: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(token_id, -0.5, ((token_id, -0.5), (7, -2.0))) for token_id in token_ids)


def pieces(token_ids: tuple[int, ...], cuts: list[int]) -> list[Piece]:
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(token_ids)}), len(token_ids)]
    return [
        Piece(first, ids, LENGTH if end == len(token_ids) else None, logprobs_of(ids))
        for first, end in pairwise(bounds)
        for ids in [token_ids[first:end]]
    ]


def said(answer: Answer, parts: list[Piece]) -> list[pb.GenerateResponse]:
    responses = []
    for part in parts:
        if not answer.is_over:
            responses.append(answer.take(part))
    return responses


def as_expected(responses: list[pb.GenerateResponse]) -> Expected:
    token_ids = tuple(token_id for response in responses for token_id in response.token_ids)
    is_stopped = responses[-1].finish_reason == pb.FINISH_REASON_STOP
    return Expected(token_ids, "".join(response.text for response in responses), is_stopped)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.integers(1, 29), max_size=12), st.integers(0, 20))
def test_any_pieces_give_the_answer_that_brute_force_finds(
    data: st.DataObject, cuts: list[int], min_tokens: int
) -> None:
    prompt = (*PROMPT, data.draw(st.integers(0, 50)))
    sampling = {"max_tokens": 30, "temperature": 0.0, "seed": 1}
    whole = expected_answer(prompt, **sampling)
    places = st.tuples(st.integers(0, len(whole.text) - 4), st.integers(1, 4))
    drawn = data.draw(st.lists(places, max_size=3))
    sampling |= {"stop": tuple(whole.text[at : at + size] for at, size in drawn), "min_tokens": min_tokens}
    call = make_call(**sampling, logprobs=2)
    responses = said(Answer(call, 0, "mine", text_tokenizer()), pieces(whole.token_ids, cuts))
    assert as_expected(responses) == expected_answer(prompt, **sampling)
    for response in responses:
        assert [logprob.token_id for logprob in response.logprobs] == list(response.token_ids)


@given(st.lists(st.integers(1, 29), max_size=12), st.integers(0, 2))
def test_messages_between_the_first_and_the_last_are_as_those_that_watch_for_more(cuts: list[int], choice: int) -> None:
    whole = expected_answer(PROMPT, max_tokens=30, temperature=0.0, seed=1)
    parts = pieces(whole.token_ids, cuts)
    plain = said(Answer(make_call(), choice, "mine", text_tokenizer()), parts)
    watching = said(Answer(make_call(stop=("\0never",)), choice, "mine", text_tokenizer()), parts)
    assert plain == watching
    assert as_expected(plain) == whole
    assert {response.choice for response in plain} == {choice}


def test_nothing_is_sent_that_could_begin_a_stop_string_and_at_the_end_it_is() -> None:
    token_ids = tuple(text_tokenizer().encode("xEN"))
    answer = Answer(make_call(stop=("END",)), 0, "mine", text_tokenizer())
    texts = [response.text for response in said(answer, pieces(token_ids, [1, 2]))]
    assert texts == ["x", "", "EN"]


def test_tokens_after_the_one_that_completes_a_stop_string_are_not_sent() -> None:
    token_ids = tuple(text_tokenizer().encode("ab.cd"))
    answer = Answer(make_call(stop=(".",), logprobs=0), 0, "mine", text_tokenizer())
    (response,) = said(answer, pieces(token_ids, []))
    assert (response.text, list(response.token_ids)) == ("ab", list(token_ids[:3]))
    assert response.finish_reason == pb.FINISH_REASON_STOP
    assert len(response.logprobs) == answer.num_tokens == 3
    assert answer.is_over


def test_a_stop_string_that_begins_within_min_tokens_is_none() -> None:
    token_ids = tuple(text_tokenizer().encode("ababx"))
    for min_tokens, text in ((0, ""), (1, "ab"), (2, "ab"), (3, "ababx")):
        answer = Answer(make_call(stop=("ab",), min_tokens=min_tokens), 0, "mine", text_tokenizer())
        assert as_expected(said(answer, pieces(token_ids, [1, 2, 3, 4]))).text == text


def test_half_a_character_at_the_end_may_complete_a_stop_string() -> None:
    token_ids = (*text_tokenizer().encode("a"), text_tokenizer().encode("é")[0])
    answer = Answer(make_call(stop=("\ufffd",)), 0, "mine", text_tokenizer())
    assert as_expected(said(answer, pieces(token_ids, [1]))) == Expected(token_ids, "a", True)


def test_token_bytes_are_filled_in_where_there_is_a_tokenizer() -> None:
    token_ids = tuple(text_tokenizer().encode("é"))
    call = make_call(logprobs=2)
    with_text = said(Answer(call, 0, "mine", text_tokenizer()), pieces(token_ids, []))[0].logprobs
    assert [logprob.token for logprob in with_text] == ["é".encode()[:1], "é".encode()[1:]]
    assert with_text[0].top_tokens[1] == text_tokenizer().text_bytes(7)
    without = said(Answer(call, 0, "mine", None), pieces(token_ids, []))[0].logprobs
    assert [(logprob.token, list(logprob.top_tokens)) for logprob in without] == [(b"", []), (b"", [])]


def test_the_prompt_is_shown_once_with_the_first_message_of_choice_0() -> None:
    call = make_call(echo="say: ", shows_prompt_ids=True, prompt_logprobs=0)
    scored = [logprobs_to_proto(logprobs) for logprobs in logprobs_of(PROMPT[1:])]
    for choice in (0, 1):
        answer = Answer(call, choice, "mine", text_tokenizer())
        first = answer.take(Piece(0, (400,), None, (), scored if choice == 0 else ()))
        last = answer.take(Piece(1, (401,), LENGTH))
        assert first.text + last.text == "say: " + text_of((400, 401))
        assert list(first.prompt_token_ids) == (list(PROMPT) if choice == 0 else [])
        told = [(logprobs.token_id, logprobs.token) for logprobs in first.prompt_logprobs]
        expected = [(token_id, text_tokenizer().text_bytes(token_id)) for token_id in PROMPT[1:]]
        assert told == (expected if choice == 0 else [])
        assert (list(last.prompt_token_ids), list(last.prompt_logprobs)) == ([], [])


def test_a_stop_string_in_the_echo_is_none() -> None:
    call = make_call(echo="one. two", stop=(".",))
    answer = Answer(call, 0, "mine", text_tokenizer())
    response = answer.take(Piece(0, tuple(text_tokenizer().encode("x.y")), None))
    assert (response.text, answer.is_over) == ("one. twox", True)


@pytest.mark.parametrize(
    ("asked", "piece"),
    [({"logprobs": 0}, Piece(0, (5, 6), None, logprobs_of((5,)))), ({"prompt_logprobs": 0}, Piece(0, (5,), None))],
)
def test_logprobs_that_workers_owe_are_missed(asked: dict[str, int], piece: Piece) -> None:
    with pytest.raises(Internal, match="logprobs"):
        Answer(make_call(**asked), 0, "mine", None).take(piece)


def test_what_was_not_asked_for_is_not_sent() -> None:
    answer = Answer(make_call(), 0, "mine", text_tokenizer())
    scored = [logprobs_to_proto(logprobs) for logprobs in logprobs_of((5,))]
    response = answer.take(Piece(0, (5,), STOP, logprobs_of((5,)), scored))
    assert {field.name for field, _ in response.ListFields()} == {"request_id", "token_ids", "text", "finish_reason"}
