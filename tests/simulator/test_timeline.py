"""The timeline is valid, bounded, and has what happened."""

import io
import json
from typing import Any

import pytest

from twinpool.simulator.observer import Transfer
from twinpool.simulator.outcome import Ending
from twinpool.simulator.timeline import Timeline

from .builders import outcome, scenario, steps


def drawn(num_requests: int, draw) -> list[dict[str, Any]]:
    stream = io.StringIO()
    timeline = Timeline(stream, scenario().workers, num_requests)
    draw(timeline)
    timeline.close()
    return json.loads(stream.getvalue())["traceEvents"]


def test_a_timeline_of_nothing_names_the_workers():
    names = [event["args"]["name"] for event in drawn(1, lambda _: None) if event["name"] == "process_name"]
    assert names == ["requests", "prefill-0 (k)", "decode-0 (k)"]


def test_steps_are_slices_of_their_workers():
    events = drawn(1, lambda timeline: timeline.stepped(steps(1, 0.5, 0.7, num_steps=2, batch=3)))
    (step,) = [event for event in events if event["ph"] == "X"]
    assert (step["name"], step["pid"], step["ts"], step["dur"]) == ("decode x3, 2 steps", 3, 500_000, 200_000)
    assert step["args"]["seconds_each"] == pytest.approx(0.1)


def test_a_completed_requests_phases_follow_one_another():
    one = outcome(held_s=0.1, queued_s=0.2, prefill_s=0.15, handoff_s=0.3)
    events = [event for event in drawn(1, lambda timeline: timeline.ended(one)) if event["ph"] == "b"]
    assert [event["name"] for event in events] == [
        "request 0: completed",
        "held",
        "queued",
        "prefill",
        "handoff",
        "decode",
    ]
    assert [event["ts"] for event in events] == [0, 0, 150_000, 350_000, 500_000, 800_000]
    assert len({event["id"] for event in events}) == 1


def test_each_begin_has_its_end():
    def draw(timeline: Timeline) -> None:
        timeline.ended(outcome())
        timeline.ended(outcome(index=1, ending=Ending.REJECTED, first_token_s=None, why="full"))
        timeline.transferred(Transfer(0, 0, 1, 0.1, 0.2, 10, 0.1, 0.0))

    events = drawn(5, draw)
    begun = sorted((event["id"], event["name"]) for event in events if event["ph"] == "b")
    assert begun == sorted((event["id"], event["name"]) for event in events if event["ph"] == "e")
    assert ("transfer 0 0.1", "KV of 0 to decode-0") in begun


def test_nothing_is_drawn_once_the_last_of_the_wanted_requests_ended():
    def draw(timeline: Timeline) -> None:
        timeline.ended(outcome(index=7))
        timeline.stepped(steps(0))
        timeline.ended(outcome(index=0))
        timeline.ended(outcome(index=1))
        timeline.stepped(steps(0))
        timeline.transferred(Transfer(7, 0, 1, 0.1, 0.2, 10, 0.1, 0.0))

    events = drawn(2, draw)
    assert sum(event["ph"] == "X" for event in events) == 1
    assert {event["id"] for event in events if event["ph"] == "b"} == {"request 0", "request 1"}
