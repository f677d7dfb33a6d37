"""Who may wait at a gateway, and that nobody waits longer than there is need to."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.dispatch_world import LONG, ONE_PAIR, World
from twinpool.core.errors import InvalidRequest, Overloaded
from twinpool.router import placement, pricing

LEAVE: dict[str, Callable[[World], object]] = {
    "its client leaves": lambda world: world.dispatcher.finish("big0"),
    "it is cancelled": lambda world: world.dispatcher.cancel("big0"),
    "its deadline comes": lambda world: world.dispatcher.tick(),
}


@pytest.mark.parametrize("how", list(LEAVE))
def test_when_the_first_in_line_goes_the_next_is_placed_at_once(how: str) -> None:
    world = World(ONE_PAIR, num_blocks=8)
    world.dispatcher.lost("d")
    world.submit("big", prompt=range(20), max_tokens=30, deadline_s=5.0)  # nobody can decode it
    world.submit("small", prompt=range(20), max_tokens=1)
    assert (world.begun, world.dispatcher.num_queued) == ([], 2)
    world.now += 6
    LEAVE[how](world)
    assert (world.begun, world.dispatcher.num_queued) == (["small0"], 0)


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
