"""A worker's view counts each reservation once, from the order to the end."""

from dataclasses import replace

import pytest

from tests.cluster.engine_builders import Recorder, make_engine, make_request, make_sequence
from twinpool.cluster.engine_events import Load
from twinpool.cluster.worker_view import LoadView
from twinpool.model.sequence import Key

IDLE = Load(
    free_blocks=8,
    running=0,
    context_tokens=0,
    waiting_prefills=0,
    waiting_prefill_tokens=0,
    reservations=0,
    reserved_blocks=0,
    parked_blocks=0,
    peak_blocks=0,
    cause="",
    preempted=0,
    wants=0,
)
KEY, OTHER = Key("r", 1), Key("other", 1)


def shown(view: LoadView) -> tuple[int, int, int]:
    return view.view.version, view.view.reservations, view.view.reserved_blocks


@pytest.fixture
def view() -> LoadView:
    view = LoadView()
    view.update(IDLE)
    return view


def test_a_reservation_is_counted_once_before_and_after_the_engine_hears_of_it(view: LoadView) -> None:
    view.expect(KEY, 3)
    assert shown(view) == (1, 0, 0)  # its gateway counts it
    view.update(IDLE)
    assert shown(view) == (2, 1, 3)
    view.asked(KEY)
    view.update(IDLE)  # a load from before
    assert shown(view) == (3, 1, 3)
    view.update(replace(IDLE, wants=1, reservations=1, reserved_blocks=3))
    assert shown(view) == (4, 1, 3)
    view.update(replace(IDLE, wants=1, running=1))
    assert shown(view) == (5, 0, 0)
    assert not view.forget(KEY)


def test_the_engine_hears_of_reservations_in_the_order_in_which_it_was_asked(view: LoadView) -> None:
    view.expect(KEY, 3)
    view.expect(OTHER, 4)
    view.asked(OTHER)
    view.asked(KEY)
    view.update(replace(IDLE, wants=1, reservations=1, reserved_blocks=4))
    assert shown(view) == (2, 2, 7)


def test_what_is_forgotten_before_the_engine_counts_it_changes_the_view_at_once(view: LoadView) -> None:
    view.expect(KEY, 3)
    view.expect(OTHER, 4)
    view.asked(KEY)
    assert view.forget(KEY)
    assert shown(view) == (2, 1, 4)
    view.asked(OTHER)
    view.update(replace(IDLE, wants=2))
    assert shown(view) == (3, 0, 0)


def test_before_the_engine_has_spoken_there_is_no_view() -> None:
    silent = LoadView()
    silent.expect(KEY, 3)
    assert not silent.forget(KEY)
    assert silent.view.version == 0


def test_an_engine_says_that_it_has_heard_even_when_nothing_came_of_it() -> None:
    events = Recorder()
    engine = make_engine(events)
    engine.step()
    sequence = make_sequence(make_request())
    engine.want(sequence)
    engine.cancel(sequence.key)
    engine.step()
    assert [load.wants for load in events.loads] == [0, 1]
    assert replace(events.loads[1], wants=0) == events.loads[0]
