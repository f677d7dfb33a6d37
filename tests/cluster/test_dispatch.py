"""The requests of one gateway: which begins when, what ends together, and what is forgotten with them."""

import asyncio

import pytest

from tests.cluster.dispatch_world import BLOCK_TOKENS, LONG, ONE_PAIR, World
from twinpool.cluster.flight import Flights, Piece
from twinpool.core.errors import Cancelled, Internal, Overloaded
from twinpool.core.messages import FinishReason, Role
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.ledger import Phase


def test_the_others_begin_when_the_first_has_its_first_token() -> None:
    world = World()
    flights = world.submit("r", 3)
    assert world.begun == ["r0"]
    world.now += 2
    world.say("r0", 0, 7)
    assert world.begun == ["r0", "r1", "r2"]
    assert [flight.arrived_s for flight in flights.of_choice] == [100.0] * 3
    assert world.orders[-1].prefill.request.age_s == 2.0  # they wait since the call came
    world.say("r0", 1, 8)
    assert len(world.begun) == 3


def test_answers_to_a_prompt_of_one_block_begin_at_once() -> None:
    world = World()
    world.submit("r", 3, LONG[:BLOCK_TOKENS])
    assert world.begun == ["r0", "r1", "r2"]


def test_each_choice_gets_its_own_number() -> None:
    world = World()
    world.submit("r", 2, [1])
    assert [order.prefill.request.choice for order in world.orders] == [0, 1]


def test_a_call_left_before_its_first_token_begins_nothing_more() -> None:
    world = World()
    flights = world.submit("r", 3)
    for flight in flights.of_choice:
        world.dispatcher.finish(flight.request.request_id)
    world.say("r0", 0, 7)
    assert (world.begun, world.cancelled) == (["r0"], ["r0"])
    assert world.dispatcher.num_open == world.dispatcher.num_queued == 0


def test_a_first_answer_that_is_stopped_after_one_token_leaves_the_others_alone() -> None:
    world = World()
    world.submit("r", 2)
    world.say("r0", 0, 7)
    world.dispatcher.finish("r0")
    assert world.begun == ["r0", "r1"]
    assert world.cancelled == ["r0"]
    assert world.dispatcher.num_open == 1


def test_answers_are_admitted_together_or_not_at_all() -> None:
    world = World(has_workers=False, max_queued=4)
    world.submit("a", 3)  # one waits, two more will
    with pytest.raises(Overloaded, match="queue is full"):
        world.submit("b", 2)
    assert world.dispatcher.num_open == world.dispatcher.num_queued == 1
    world.submit("c", 1)
    world.join("m")
    assert world.begun == ["a0", "c0"]


def test_answers_that_will_never_begin_take_no_room_in_the_queue() -> None:
    world = World(has_workers=False, max_queued=4)
    for flight in world.submit("gone", 3).of_choice:
        world.dispatcher.finish(flight.request.request_id)
    world.submit("a", 1)
    world.submit("b", 3)
    assert world.dispatcher.num_queued == 2


def next_piece(flights: Flights) -> tuple[int, Piece]:
    return asyncio.run(asyncio.wait_for(flights.next_piece(), 1))


def test_pieces_come_in_the_order_of_their_arrival_with_their_choice() -> None:
    world = World()
    flights = world.submit("r", 2, [1])
    for request_id, index in (("r1", 0), ("r0", 0), ("r1", 1)):
        world.say(request_id, index, 7)
    taken = [next_piece(flights) for _ in range(2)]
    assert [(choice, piece.index, piece.token_ids) for choice, piece in taken] == [(1, 0, (7, 7)), (0, 0, (7,))]


def test_an_error_of_any_choice_ends_the_call_unless_that_choice_has_ended() -> None:
    world = World()
    flights = world.submit("r", 2, [1])
    world.say("r0", 0, 7)
    flights.end(0)
    assert world.dispatcher.cancel("r0")
    world.say("r1", 0, 8)
    choice, piece = next_piece(flights)
    assert (choice, piece.token_ids) == (1, (8,))
    assert flights.num_open == 1
    assert world.dispatcher.cancel("r1")
    with pytest.raises(Cancelled):
        next_piece(flights)


def test_logprobs_of_the_prompt_come_with_its_first_token_only() -> None:
    world = World()
    flights = world.submit("r", 1)
    scored = [{"token_id": token_id, "logprob": -1.0} for token_id in LONG[1:]]
    for index in (1, 0, 0):
        delta = pb.Delta(
            request_id="r0",
            epoch=1,
            index=index,
            token_ids=[index],
            logprobs=[{"token_id": index, "logprob": -0.5, "top_ids": [3], "top_logprobs": [-0.25]}],
            prompt_logprobs=[] if index else scored,
        )
        world.dispatcher.stepped("m", pb.StepOutput(deltas=[delta]))
    _, piece = next_piece(flights)
    assert [(logprob.token_id, logprob.top) for logprob in piece.logprobs] == [(0, ((3, -0.25),)), (1, ((3, -0.25),))]
    assert [logprob.token_id for logprob in piece.prompt_logprobs] == list(LONG[1:])


# --- ends, and what must not outlive them -------------------------------------------------------------------------


def test_an_answer_that_ends_with_its_first_token_leaves_its_room_to_the_next() -> None:
    """The one message of a worker that idles again: no second one will say that the order is done."""
    world = World(num_blocks=8)
    world.submit("a", prompt=range(20), max_tokens=30)
    world.submit("b", prompt=range(20), max_tokens=30)
    assert world.begun == ["a0"]  # seven blocks each
    world.say("a0", 0, 7, finish=FinishReason.STOP, view=pb.WorkerView(version=1))
    assert world.begun == ["a0", "b0"]


def test_a_prompt_that_is_all_done_waits_in_no_queue() -> None:
    world = World({"p": Role.PREFILL})
    world.submit("a", prompt=range(20), max_tokens=1)
    assert world.dispatcher.table.snapshot(world.now).waiting_prefill_tokens == [20]
    world.say("a0", 0, 7, worker="p", finish=FinishReason.LENGTH, view=pb.WorkerView(version=1))
    assert world.dispatcher.table.snapshot(world.now).waiting_prefill_tokens == [0]


def test_an_answer_that_ends_while_it_waits_for_another_target_waits_no_longer() -> None:
    world = World(ONE_PAIR, num_blocks=8)
    flights = world.submit("a", prompt=range(20), max_tokens=30)
    world.show("d", 5, peak_blocks=8)
    failure = pb.Failure(request_id="a0", epoch=1, kind=pb.FAILURE_KIND_TRANSFER_FAILED, reason="link closed")
    world.dispatcher.stepped("d", pb.StepOutput(failures=[failure]))
    assert world.dispatcher.num_queued == 1
    world.say("a0", 0, 7, worker="p", finish=FinishReason.STOP)
    assert world.dispatcher.num_queued == 0
    assert world.cancelled == ["a0", "a0"]  # first the handoff to d, then the KV that p kept for another target
    world.show("d", 6)
    assert (world.begun, world.dispatcher.ledger.entry("a0").phase) == (["a0"], Phase.ENDED)
    assert next_piece(flights)[1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    "news",
    [
        {"deltas": [pb.Delta(request_id="r0", epoch=1, token_ids=[7], logprobs=[{"token_id": 7, "top_ids": [1]}])]},
        {"failures": [pb.Failure(request_id="r0", epoch=1, kind=pb.FAILURE_KIND_UNSPECIFIED)]},
    ],
    ids=["tokens", "failure"],
)
def test_news_that_cannot_be_taken_fail_one_request_and_not_its_worker(news: dict[str, list[object]]) -> None:
    world = World()
    broken, well = world.submit("r"), world.submit("s")
    world.dispatcher.stepped("m", pb.StepOutput(**news))  # type: ignore[arg-type]
    with pytest.raises(Internal):
        next_piece(broken)
    assert world.cancelled == ["r0"]
    world.say("s0", 0, 8)
    assert next_piece(well)[1].token_ids == (8,)
    world.dispatcher.finish("r0")
    assert world.dispatcher.num_open == 1


def test_tokens_beside_those_that_cannot_be_taken_arrive() -> None:
    world = World()
    world.submit("r")
    well = world.submit("s")
    bad = pb.Delta(request_id="r0", epoch=1, token_ids=[7], logprobs=[{"token_id": 7, "top_ids": [1]}])
    world.dispatcher.stepped("m", pb.StepOutput(deltas=[bad, pb.Delta(request_id="s0", epoch=1, token_ids=[8])]))
    assert next_piece(well)[1].token_ids == (8,)


def test_what_the_model_cannot_answer_is_not_tried_again() -> None:
    world = World()
    flights = world.submit("r")
    failure = pb.Failure(request_id="r0", epoch=1, kind=pb.FAILURE_KIND_UNANSWERABLE, reason="logits are not finite")
    world.dispatcher.stepped("m", pb.StepOutput(failures=[failure]))
    with pytest.raises(Internal, match="not finite"):
        next_piece(flights)
    assert (world.begun, world.cancelled) == (["r0"], ["r0"])
