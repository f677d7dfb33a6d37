import pytest

from twinpool.simulator.world import Faults, Network, World


def test_events_happen_in_order_of_time_and_ties_in_order_of_asking():
    world, log = World(0), []
    world.at(2.0, lambda: log.append("c"))
    world.at(1.0, lambda: log.append("a"))
    world.at(1.0, lambda: log.append("b"))
    world.run()
    assert log == ["a", "b", "c"]
    assert world.now == 2.0


def test_an_event_may_cause_events_and_the_past_happens_now():
    world, log = World(0), []
    world.at(1.0, lambda: world.at(0.5, lambda: log.append(world.now)))
    world.run()
    assert log == [1.0]


def test_a_cancelled_timer_does_nothing():
    world, log = World(0), []
    timer = world.after(1.0, lambda: log.append(1))
    timer.cancel()
    timer.cancel()
    world.run()
    assert log == []


def test_run_stops_at_until_and_goes_on_from_there():
    world, log = World(0), []
    world.at(1.0, lambda: log.append(1))
    world.at(3.0, lambda: log.append(3))
    world.run(until=2.0)
    assert (log, world.now) == ([1], 2.0)
    world.run()
    assert log == [1, 3]


def test_a_world_without_rest_is_refused():
    world = World(0)

    def again() -> None:
        world.after(0.1, again)

    again()
    with pytest.raises(RuntimeError, match="no rest"):
        world.run(max_events=100)


def _carried(seed: int, faults: Faults, num_messages: int = 200) -> list[int]:
    world, log = World(seed), []
    network = Network(world, faults)
    for number in range(num_messages):
        network.send("p", "d", lambda number=number: log.append(number))
    world.run()
    return log


def test_a_faultless_network_keeps_order_and_loses_nothing():
    assert _carried(1, Faults()) == list(range(200))


def test_the_same_seed_is_the_same_world():
    faults = Faults(drop=0.2, duplicate=0.2, reorder=0.2)
    assert _carried(5, faults) == _carried(5, faults)
    assert _carried(5, faults) != _carried(6, faults)


@pytest.mark.parametrize(
    ("faults", "shows"),
    [
        (Faults(drop=0.3), lambda log: len(log) < 200 and log == sorted(set(log))),
        (Faults(duplicate=0.3), lambda log: len(log) > 200 and set(log) == set(range(200))),
        (Faults(reorder=0.3), lambda log: log != sorted(log) and sorted(log) == list(range(200))),
    ],
)
def test_each_fault_does_what_it_says_and_no_more(faults, shows):
    assert shows(_carried(2, faults))


def test_a_partition_loses_what_would_arrive_and_mending_ends_it():
    world, log = World(0), []
    network = Network(world, Faults())
    network.send("p", "d", lambda: log.append("in flight"))
    network.part("d", "p")
    network.send("p", "other", lambda: log.append("elsewhere"))
    world.run(until=1.0)
    network.mend("p", "d")
    network.send("p", "d", lambda: log.append("after"))
    world.run()
    assert log == ["elsewhere", "after"]
