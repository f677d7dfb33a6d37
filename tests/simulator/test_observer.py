"""What observers are told, and that watching changes nothing."""

from twinpool.simulator.cluster import simulate
from twinpool.simulator.event_log import EventLog
from twinpool.simulator.observer import Observer

from .cluster_worlds import Seen, draw_world


def test_an_observer_that_does_nothing_may_watch_or_nobody():
    settings, trace = draw_world(3)
    simulate(settings, trace, [Observer()], 5000.0)
    simulate(settings, trace, [], 5000.0)


def test_watching_changes_nothing_and_all_who_watch_are_told_the_same():
    settings, trace = draw_world(3)
    alone, one, other = EventLog(), EventLog(), EventLog()
    simulate(settings, trace, [alone], 5000.0)
    simulate(settings, trace, [one, Seen(), other], 5000.0)
    assert alone.hexdigest() == one.hexdigest() == other.hexdigest()


def test_steps_and_transfers_add_up_to_what_requests_needed():
    """In a world without faults and preemption: every prompt token computed or cached once, every later one decoded."""
    settings, trace = draw_world(0)
    seen = Seen()
    simulate(settings, trace, [seen], 5000.0)
    assert all(outcome.attempts == 1 for outcome in seen.outcomes.values())
    completed = seen.completed
    computed = sum(outcome.offered.prompt_tokens - outcome.cached_tokens for outcome in completed)
    assert sum(steps.prefill_tokens for steps in seen.steps) == computed
    decoded = sum(outcome.num_tokens - 1 for outcome in completed)
    assert sum(steps.batch * steps.num_steps for steps in seen.steps) == decoded
    handed = [outcome for outcome in completed if outcome.kv_bytes]
    assert len(handed) == len(seen.transfers)
    assert sum(outcome.kv_bytes for outcome in handed) == sum(transfer.num_bytes for transfer in seen.transfers)
