"""The event log has a line for everything that was told."""

import io
import json

from twinpool.simulator.event_log import EventLog
from twinpool.simulator.observer import Gauge, Transfer

from .builders import outcome, steps


def test_each_event_is_one_line_with_all_its_values():
    stream = io.StringIO()
    log = EventLog(stream)
    log.offered(0, 0.1)
    log.stepped(steps(1, 0.1, 0.30000000000000004))
    log.transferred(Transfer(0, 0, 1, 0.1, 0.2, 10, 0.0))
    log.gauged(Gauge(1.0, 0, 1, 2, 3))
    log.happened(2.0, 1, "crashed")
    log.ended(outcome())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["offered", "stepped", "transferred", "gauged", "happened", "ended"]
    assert lines[1]["ended_s"] == 0.30000000000000004
    assert (lines[5]["offered"]["prompt_tokens"], lines[5]["ending"]) == (100, "completed")
