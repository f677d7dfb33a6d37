"""The answers of one call: which begins when, and that they are admitted, cancelled and forgotten together."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.cluster.local_cluster import make_plan
from twinpool.cluster.dispatch import Dispatcher
from twinpool.cluster.flight import Flights, Piece
from twinpool.cluster.gateway import placement_settings
from twinpool.core.errors import Cancelled, Overloaded
from twinpool.core.messages import Goal, Request, Role, WorkerAddress
from twinpool.core.sampling import SamplingParams
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.admission import AdmissionSettings
from twinpool.router.views import WorkerView

BLOCK_TOKENS = 8
LONG = tuple(range(BLOCK_TOKENS + 1))


class World:
    """A dispatcher with one mixed worker that does nothing by itself."""

    def __init__(self, *, has_worker: bool = True, max_queued: int = 10) -> None:
        self.now = 100.0
        self.orders: list[pb.GatewayMessage] = []
        self.dispatcher = Dispatcher(
            placement_settings(make_plan(0, 0, 1).gateways[0], 64),
            AdmissionSettings(max_queued=max_queued),
            3,
            send=lambda _, order: self.orders.append(order),
            clock=lambda: self.now,
        )
        if has_worker:
            self.join()

    def join(self) -> None:
        view = WorkerView("m", "1", Role.MIXED, total_blocks=1000, block_tokens=BLOCK_TOKENS)
        self.dispatcher.table.join(view, self.now)
        self.dispatcher.joined(WorkerAddress("m", "1", "host:1"))

    def submit(self, name: str, num: int, prompt: Sequence[int] = LONG) -> Flights:
        first = Request(
            name, 1, tuple(prompt), len(prompt), SamplingParams(max_tokens=5, seed=1), Goal(10, 10), priority=0
        )
        requests = [replace(first, request_id=f"{name}{choice}", choice=choice) for choice in range(num)]
        return self.dispatcher.submit(requests)

    def say(self, request_id: str, index: int, token_id: int) -> None:
        delta = pb.Delta(request_id=request_id, epoch=1, index=index, token_ids=[token_id])
        self.dispatcher.stepped("m", pb.StepOutput(deltas=[delta]))

    @property
    def begun(self) -> list[str]:
        return [order.prefill.request.request_id for order in self.orders if order.HasField("prefill")]

    @property
    def cancelled(self) -> list[str]:
        return [order.cancel.request_id for order in self.orders if order.HasField("cancel")]


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
    world = World(has_worker=False, max_queued=4)
    world.submit("a", 3)  # one waits, two more will
    with pytest.raises(Overloaded, match="queue is full"):
        world.submit("b", 2)
    assert world.dispatcher.num_open == world.dispatcher.num_queued == 1
    world.submit("c", 1)
    world.join()
    assert world.begun == ["a0", "c0"]


def test_answers_that_will_never_begin_take_no_room_in_the_queue() -> None:
    world = World(has_worker=False, max_queued=4)
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
    assert [next_piece(flights)[0] for _ in range(3)] == [1, 0, 1]


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
    assert flights._news.qsize() == 1
    _, piece = next_piece(flights)
    assert [(logprob.token_id, logprob.top) for logprob in piece.logprobs] == [(0, ((3, -0.25),)), (1, ((3, -0.25),))]
    assert [logprob.token_id for logprob in piece.prompt_logprobs] == list(LONG[1:])
