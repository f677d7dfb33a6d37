"""Whatever the pace of its reader, a call's answers come whole: each index once, in order, and errors after tokens."""

import asyncio
from collections import defaultdict
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.cluster.flight import MAX_JOINED, Flights, Piece
from twinpool.core.errors import Cancelled
from twinpool.core.messages import FinishReason, Goal, Request
from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.protos.twinpool.v1 import generation_pb2 as pb


def make_flights(num: int = 1) -> Flights:
    sampling = SamplingParams(max_tokens=10_000, seed=1)
    requests = [Request(f"r{i}", 1, (1, 2), 2, sampling, Goal(1, 1), choice=i) for i in range(num)]
    return Flights(requests, 0.0, 100.0)


def a_piece(index: int, num: int = 1, finish: FinishReason | None = None) -> Piece:
    ids = tuple(range(1000 + index, 1000 + index + num))
    return Piece(index, ids, finish, tuple(TokenLogprobs(token_id, -0.5, ()) for token_id in ids))


async def all_of(flights: Flights, num_tokens: int) -> list[tuple[int, Piece]]:
    taken = []
    while sum(len(piece.token_ids) for _, piece in taken) < num_tokens:
        taken.append(await asyncio.wait_for(flights.next_piece(), 1))
    return taken


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=30))
def test_pieces_that_waited_together_are_the_pieces_that_came(says: list[tuple[int, int, bool]]) -> None:
    sent, read = [0, 0, 0], defaultdict[int, list[Piece]](list)

    async def scenario() -> None:
        flights, num_read = make_flights(3), 0
        for choice, num, is_read in says:
            flights.of_choice[choice].push(a_piece(sent[choice], num), 1.0)
            sent[choice] += num
            for from_choice, piece in await all_of(flights, 1 if is_read else 0):
                read[from_choice].append(piece)
                num_read += len(piece.token_ids)
        for from_choice, piece in await all_of(flights, sum(sent) - num_read):
            read[from_choice].append(piece)

    asyncio.run(scenario())
    for choice, pieces in read.items():
        assert list(chain.from_iterable(piece.token_ids for piece in pieces)) == list(
            a_piece(0, sent[choice]).token_ids
        )
        assert all(piece == a_piece(piece.index, len(piece.token_ids)) for piece in pieces)
    assert sorted(read) == [choice for choice, num in enumerate(sent) if num]


def test_a_late_reader_gets_one_piece_with_the_end_and_the_prompts_logprobs() -> None:
    flights, scored = make_flights(), (pb.TokenLogprobs(token_id=2),)
    flights.of_choice[0].push(a_piece(0)._replace(prompt_logprobs=scored), 1.0)
    flights.of_choice[0].push(a_piece(1, 2, FinishReason.STOP), 1.0)
    [(_, piece)] = asyncio.run(all_of(flights, 3))
    assert piece == a_piece(0, 3, FinishReason.STOP)._replace(prompt_logprobs=scored)


def test_what_waits_is_cut_into_messages_of_bounded_size() -> None:
    flights = make_flights(2)
    for index in range(2 * MAX_JOINED + 1):
        flights.of_choice[0].push(a_piece(index), 1.0)
    flights.of_choice[1].push(a_piece(0), 1.0)
    taken = asyncio.run(all_of(flights, 2 * MAX_JOINED + 2))
    assert [(choice, len(piece.token_ids)) for choice, piece in taken] == [
        (0, MAX_JOINED),
        (1, 1),
        (0, MAX_JOINED),
        (0, 1),
    ]
    assert [piece.index for choice, piece in taken if choice == 0] == [0, MAX_JOINED, 2 * MAX_JOINED]


def test_an_error_comes_after_the_tokens_that_came_before_it() -> None:
    async def scenario() -> None:
        flights = make_flights(2)
        flights.of_choice[0].push(a_piece(0), 1.0)
        flights.of_choice[0].push(a_piece(1), 1.0)
        flights.of_choice[1].push(a_piece(0), 1.0)
        flights.of_choice[0].fail(Cancelled("enough"))
        taken = await all_of(flights, 3)
        assert [(choice, len(piece.token_ids)) for choice, piece in taken] == [(0, 2), (1, 1)]
        with pytest.raises(Cancelled, match="enough"):
            await flights.next_piece()

    asyncio.run(scenario())


def test_a_reader_that_waits_is_woken_and_one_that_left_harms_nobody() -> None:
    async def scenario() -> None:
        flights = make_flights()
        left = asyncio.create_task(flights.next_piece())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        flights.of_choice[0].push(a_piece(0), 1.0)
        assert (await flights.next_piece())[1] == a_piece(0)
        waits = asyncio.create_task(flights.next_piece())
        await asyncio.sleep(0)
        assert not waits.done()
        flights.of_choice[0].push(a_piece(1), 2.0)
        flights.of_choice[0].push(a_piece(2), 3.0)
        assert (await asyncio.wait_for(waits, 1))[1] == a_piece(1, 2)

    asyncio.run(scenario())
