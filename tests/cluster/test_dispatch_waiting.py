"""Who may wait at a gateway, and that nobody waits longer than there is need to."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.dispatch_world import LONG, ONE_PAIR, World
from twinpool.core.errors import InvalidRequest, Overloaded
from twinpool.core.messages import FinishReason
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router import placement, pricing
from twinpool.router.fair_queue import FairSettings
from twinpool.router.tenants import TenantLimits

LEAVE: dict[str, Callable[[World], object]] = {
    "its client leaves": lambda world: world.dispatcher.finish("big0"),
    "it is cancelled": lambda world: world.dispatcher.cancel("big0"),
    "its deadline comes": lambda world: world.dispatcher.tick(),
}


@pytest.mark.parametrize("how", list(LEAVE))
def test_when_one_that_was_waited_for_goes_the_next_is_placed_at_once(how: str) -> None:
    world = World(ONE_PAIR, num_blocks=8, fair=FairSettings(max_aside=1))
    world.dispatcher.lost("d")
    world.submit("big", prompt=range(20), max_tokens=30, deadline_s=5.0)  # nobody can decode it
    world.submit("small", prompt=range(20), max_tokens=1)
    assert (world.begun, world.dispatcher.num_queued) == ([], 2)
    world.now += 6
    LEAVE[how](world)
    assert (world.begun, world.dispatcher.num_queued) == (["small0"], 0)


def test_one_that_nobody_can_decode_holds_up_nobody_who_needs_no_decoding() -> None:
    world = World(ONE_PAIR, num_blocks=8)
    world.dispatcher.lost("d")
    world.submit("big", prompt=range(20), max_tokens=30)
    for number in range(30):
        world.submit(f"small{number}-", prompt=range(5), max_tokens=1)
        world.say(f"small{number}-0", 0, 7, worker="p", finish=FinishReason.LENGTH)
    assert len(world.begun) == 30
    world.join("d")
    assert "big0" in world.begun


def test_a_tenants_next_request_goes_when_its_last_one_ends_and_others_go_meanwhile() -> None:
    world = World(tenants={"acme": TenantLimits(max_running=1, tokens_per_s=10, burst_tokens=20)})
    for name in ("a", "b"):
        world.submit(name, tenant="acme")
    world.submit("c", tenant="other")
    assert world.begun == ["a0", "c0"]
    with pytest.raises(Overloaded, match="tenant acme is over its tokens_per_s") as caught:
        world.submit("d", tenant="acme")
    assert caught.value.retry_after_s == pytest.approx(0.7)  # two prompts of 9 tokens, and another of them, less 20
    for index in range(5):
        world.say("a0", index, 7, finish=FinishReason.LENGTH if index == 4 else None)
    assert world.begun == ["a0", "c0", "b0"]
    queued, counts = world.dispatcher.waiting.tenants()["acme"]
    assert (queued, counts.admitted, counts.refused, counts.running) == (0, 2, 1, 1)
    assert (counts.prompt_tokens, counts.output_tokens) == (18, 5)


def test_a_preempted_request_is_not_charged_twice_and_goes_on_before_its_tenants_next() -> None:
    world = World(tenants={"acme": TenantLimits(max_running=1)})
    for name in ("a", "b"):
        world.submit(name, tenant="acme")
    world.say("a0", 0, 7)
    failure = pb.Failure(request_id="a0", epoch=1, kind=pb.FAILURE_KIND_PREEMPTED, reason="no room")
    world.dispatcher.stepped("m", pb.StepOutput(failures=[failure]))
    assert world.begun == ["a0", "a0"]
    counts = world.dispatcher.waiting.tenants()["acme"][1]
    assert (counts.admitted, counts.prompt_tokens, counts.output_tokens, counts.running) == (2, 18, 1, 1)


def test_room_that_a_leaver_gives_back_is_taken_at_once() -> None:
    world = World(num_blocks=8)
    for name in "ab":
        world.submit(name, prompt=range(20), max_tokens=30)
    assert world.begun == ["a0"]
    world.dispatcher.finish("a0")
    assert world.begun == ["a0", "b0"]


def test_answers_to_come_count_against_the_bound_though_nobody_waits_yet() -> None:
    world = World(max_queued=10)
    world.submit("a", 6)  # five will wait
    world.submit("b", 6)
    with pytest.raises(Overloaded, match="queue is full"):
        world.submit("c", 2)
    world.submit("d", 1)  # goes at once
    world.show("m", 50, peak_blocks=1000)
    for name in "ab":
        world.say(f"{name}0", 0, 7)
    assert world.dispatcher.num_queued == 10


def test_more_answers_than_may_ever_wait_are_refused_by_name() -> None:
    world = World(max_queued=4)
    with pytest.raises(InvalidRequest, match=r"sampling\.n"):
        world.submit("a", 6)
    world.submit("b", 5)
    assert world.begun == ["b0"]


def test_a_request_over_which_placing_breaks_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(has_workers=False)
    world.submit("broken", prompt=LONG)
    world.submit("well", prompt=LONG[1:])
    price = pricing.price

    def break_once(demand: Any, *others: Any) -> Any:
        if demand.num_tokens == len(LONG):
            raise ZeroDivisionError("a policy is wrong")
        return price(demand, *others)

    monkeypatch.setattr(placement, "price", break_once)
    world.join("m")
    assert (world.begun, world.dispatcher.num_queued) == (["well0"], 0)
