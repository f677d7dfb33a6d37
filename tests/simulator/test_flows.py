"""Flows over shared cards against a reference of small time steps, and the laws they keep."""

from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twinpool.simulator.flows import Card, Flow
from twinpool.simulator.world import World

CLOSE_S = 0.05  # a dozen steps of the reference


@dataclass
class Load:
    """One flow of a script: bytes at its begin, and perhaps more a while later."""

    at_s: float
    source: int
    target: int
    num_bytes: float
    more: tuple[float, float] | None = None  # (when, bytes)
    stop_s: float | None = None


def simulated(speeds: list[float], loads: list[Load]) -> list[float | None]:
    """When each flow was done."""
    world, cards = World(0), [Card(speed) for speed in speeds]
    done: list[float | None] = [None] * len(loads)
    flows: dict[int, Flow] = {}
    stopped: set[int] = set()

    def begin(index: int) -> None:
        load = loads[index]

        def note() -> None:
            done[index] = world.now

        flows[index] = Flow(world, cards[load.source], cards[load.target], load.num_bytes, note)

    def add(index: int, num_bytes: float) -> None:
        if done[index] is None and index not in stopped:
            flows[index].add(num_bytes)

    def stop(index: int) -> None:
        if done[index] is None:
            stopped.add(index)
            flows[index].stop()

    for index, load in enumerate(loads):
        world.at(load.at_s, lambda index=index: begin(index))  # type: ignore[misc]
        if load.more is not None:
            world.at(load.more[0], lambda index=index, more=load.more[1]: add(index, more))  # type: ignore[misc]
        if load.stop_s is not None:
            world.at(load.stop_s, lambda index=index: stop(index))  # type: ignore[misc]
    world.run()
    assert all(not card.outgoing and not card.incoming for card in cards)
    return done


def stepwise(speeds: list[float], loads: list[Load], step_s: float = 4e-3) -> list[float | None]:
    """The same by many small steps: in each, every flow moves at the smaller of its fair shares."""
    left = [load.num_bytes for load in loads]
    done: list[float | None] = [None] * len(loads)
    is_stopped, has_more = [False] * len(loads), [load.more is not None for load in loads]
    now = 0.0
    while any(one is None and not stopped for one, stopped in zip(done, is_stopped, strict=True)):
        for index, load in enumerate(loads):
            if load.more is not None and has_more[index] and load.more[0] <= now:
                has_more[index] = False
                left[index] += load.more[1] if done[index] is None else 0.0
            is_stopped[index] |= load.stop_s is not None and load.stop_s <= now and done[index] is None
        under_way = [
            index
            for index, load in enumerate(loads)
            if load.at_s <= now and done[index] is None and not is_stopped[index]
        ]
        for index in under_way:
            load = loads[index]
            leaving = sum(loads[other].source == load.source for other in under_way)
            coming = sum(loads[other].target == load.target for other in under_way)
            left[index] -= step_s * min(speeds[load.source] / leaving, speeds[load.target] / coming)
        now += step_s
        for index in under_way:
            if left[index] <= 0:
                done[index] = now
    return done


AT = st.integers(0, 2000).map(lambda number: number / 1000)


@st.composite
def scripts(draw: st.DrawFn) -> tuple[list[float], list[Load]]:
    speeds = draw(st.lists(st.sampled_from([1e6, 2e6, 5e6]), min_size=2, max_size=4))
    card = st.integers(0, len(speeds) - 1)
    loads = []
    for _ in range(draw(st.integers(1, 5))):
        at_s = draw(AT)
        more = (at_s + draw(AT), draw(st.sampled_from([1e5, 1e6]))) if draw(st.booleans()) else None
        stop_s = at_s + draw(AT) if draw(st.integers(0, 2)) == 0 else None
        loads.append(Load(at_s, draw(card), draw(card), draw(st.sampled_from([1e5, 5e5, 2e6])), more, stop_s))
    return speeds, loads


def is_close_race(load: Load, end_s: float | None) -> bool:
    """Whether a step of the reference decides if the flow ends before more comes, or before it is stopped."""
    others = [at_s for at_s in (load.more and load.more[0], load.stop_s) if at_s is not None]
    return end_s is not None and any(abs(end_s - at_s) <= CLOSE_S for at_s in others)


@given(scripts())
def test_flows_end_when_the_bytes_of_small_steps_have_arrived(script: tuple[list[float], list[Load]]):
    speeds, loads = script
    found = simulated(speeds, loads)
    assume(not any(map(is_close_race, loads, found)))
    for one, other in zip(found, stepwise(speeds, loads), strict=True):
        assert one == pytest.approx(other, abs=CLOSE_S)


def test_one_flow_has_the_slower_card_to_itself():
    assert simulated([1e6, 4e6], [Load(1.0, 0, 1, 2e6)]) == pytest.approx([3.0])


def test_two_flows_share_a_card_and_the_longer_one_has_it_alone_at_the_end():
    # Both at half speed for 2 s, then the second alone with its last million bytes.
    loads = [Load(0.0, 0, 1, 1e6), Load(0.0, 0, 2, 2e6)]
    assert simulated([1e6, 1e6, 1e6], loads) == pytest.approx([2.0, 3.0])


def test_each_way_of_a_card_is_its_own():
    assert simulated([1e6, 1e6], [Load(0.0, 0, 1, 1e6), Load(0.0, 1, 0, 1e6)]) == pytest.approx([1.0, 1.0])


def test_what_is_stopped_leaves_its_share_to_others():
    loads = [Load(0.0, 0, 1, 1e6), Load(0.0, 0, 1, 9e6, stop_s=1.0)]
    assert simulated([1e6, 1e6], loads) == [pytest.approx(1.5), None]


def test_a_flow_may_be_given_more_and_ends_once():
    assert simulated([1e6, 1e6], [Load(0.0, 0, 1, 1e6, more=(0.5, 2e6))]) == pytest.approx([3.0])
