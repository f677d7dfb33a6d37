"""Indices arrive exactly once and in order, or the exchange says so."""

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.client.errors import ConnectionFailed
from twinpool.client.exchange import Exchange
from twinpool.client.results import TopLogprob
from twinpool.client.timeout import Timeout
from twinpool.core.errors import Internal
from twinpool.core.messages import FinishReason
from twinpool.protos.twinpool.v1 import generation_pb2

Response = generation_pb2.GenerateResponse


class Unavailable(grpc.RpcError):  # type: ignore[misc]
    """A connection that broke."""

    def code(self) -> Any:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "broken pipe"

    def trailing_metadata(self) -> None:
        return None


LENGTH = generation_pb2.FINISH_REASON_LENGTH


def make_exchange(*addresses: str, num_choices: int = 1) -> Exchange:
    return Exchange(addresses or ("a:1",), Timeout(), now=100.0, num_choices=num_choices)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=4), max_size=6))
def test_the_result_is_what_the_events_said(batches: list[list[int]]) -> None:
    exchange, events, index = make_exchange(), [], 0
    for ids in batches:
        events.append(exchange.accept(Response(index=index, token_ids=ids, text="é" * len(ids))))
        index += len(ids)
    exchange.accept(Response(finish_reason=generation_pb2.FINISH_REASON_LENGTH))
    exchange.end()
    assert exchange.result is not None
    told = [event for event in events if event is not None]
    assert exchange.result.token_ids == tuple(token_id for event in told for token_id in event.token_ids)
    assert exchange.result.text == "".join(event.text for event in told)
    assert [event.index for event in told] == [sum(map(len, batches[:i])) for i, ids in enumerate(batches) if ids]


@given(st.integers(0, 8).filter(lambda index: index != 3))
def test_any_index_but_the_next_is_refused(index: int) -> None:
    exchange = make_exchange()
    exchange.accept(Response(index=0, token_ids=[1, 2, 3]))
    with pytest.raises(Internal, match="token 3 was due"):
        exchange.accept(Response(index=index, token_ids=[4]))


def test_answers_that_come_mixed_are_taken_apart() -> None:
    exchange = make_exchange(num_choices=2)
    prompt = [{"token_id": 8, "logprob": -1.0}]
    exchange.accept(Response(choice=1, token_ids=[5], text="a", prompt_token_ids=[7, 8], prompt_logprobs=prompt))
    exchange.accept(Response(choice=0, token_ids=[6], text="b"))
    event = exchange.accept(Response(choice=1, index=1, token_ids=[7], text="c", finish_reason=LENGTH))
    assert event is not None
    assert (event.choice, event.index) == (1, 1)
    assert exchange.result is None  # choice 0 is missing
    usage = generation_pb2.Usage(completion_tokens=3)
    exchange.accept(Response(choice=0, index=1, finish_reason=generation_pb2.FINISH_REASON_STOP, usage=usage))
    result = exchange.result
    assert result is not None
    assert [(choice.index, choice.text, choice.token_ids) for choice in result.choices] == [
        (0, "b", (6,)),
        (1, "ac", (5, 7)),
    ]
    assert (result.text, result.token_ids, result.finish_reason) == ("b", (6,), FinishReason.STOP)
    assert result.usage.completion_tokens == 3
    assert result.prompt_token_ids == (7, 8)
    assert [logprob.token_id for logprob in result.prompt_logprobs] == [8]


@pytest.mark.parametrize(
    "response",
    [
        Response(choice=2, token_ids=[1]),  # of two
        Response(choice=1, index=1, token_ids=[1]),
        Response(choice=0, index=1, token_ids=[1]),  # it is over
        Response(choice=1, token_ids=[1, 2], logprobs=[{"token_id": 1}]),
        Response(choice=1, token_ids=[1], logprobs=[{"token_id": 1, "top_ids": [1], "top_logprobs": [-1, -2]}]),
        Response(choice=1, token_ids=[1], logprobs=[{"token_id": 1, "top_ids": [1], "top_logprobs": [-1],
                                                     "top_tokens": [b"a", b"b"]}]),
    ],
)  # fmt: skip
def test_a_broken_promise_about_choices_or_logprobs_is_refused(response: Response) -> None:
    exchange = make_exchange(num_choices=2)
    exchange.accept(Response(choice=0, token_ids=[1], finish_reason=LENGTH))
    with pytest.raises(Internal):
        exchange.accept(response)


def test_logprobs_have_their_bytes_where_the_gateway_knows_them() -> None:
    exchange = make_exchange()
    with_bytes = {"token_id": 1, "logprob": -0.5, "token": b"a", "top_ids": [1, 2], "top_logprobs": [-0.5, -1.5]}
    without = with_bytes | {"token": b""}
    with_bytes["top_tokens"] = [b"a", b"\xc3"]
    event = exchange.accept(Response(token_ids=[1, 1], logprobs=[with_bytes, without]))
    assert event is not None
    first, second = event.logprobs
    assert (first.token_id, first.logprob, first.token) == (1, -0.5, b"a")
    assert first.top == (TopLogprob(1, -0.5, b"a"), TopLogprob(2, -1.5, b"\xc3"))
    assert [top.token for top in second.top] == [b"", b""]


def test_an_end_without_the_last_message_is_refused() -> None:
    with pytest.raises(Internal, match="finish reason"):
        make_exchange().end()


def test_addresses_are_tried_in_order_until_a_message_arrived() -> None:
    exchange = make_exchange("a:1", "b:2", "c:3")
    exchange.fail(Unavailable())
    assert exchange.address == "b:2"
    exchange.accept(Response(index=0, token_ids=[1]))
    with pytest.raises(ConnectionFailed, match="b:2: lost after 1 tokens"):
        exchange.fail(Unavailable())


def test_the_total_limit_runs_from_the_start_and_never_below_zero() -> None:
    exchange = make_exchange()
    assert exchange.remaining_s(now=101.0) == Timeout().total_s - 1.0
    assert exchange.remaining_s(now=1e9) == 0.0
