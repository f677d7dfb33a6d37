"""Indices arrive exactly once and in order, or the exchange says so."""

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.client.errors import ConnectionFailed
from twinpool.client.exchange import Exchange
from twinpool.client.timeout import Timeout
from twinpool.core.errors import Internal
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


def make_exchange(*addresses: str) -> Exchange:
    return Exchange(addresses or ("a:1",), Timeout(), now=100.0)


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
