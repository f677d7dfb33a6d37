"""The event log's hash and text."""

import io

from twinpool.simulator.event_log import EventLog
from twinpool.simulator.observer import Gauge, Transfer

from .builders import outcome, steps


def told(log: EventLog, at_s: float = 0.1) -> EventLog:
    log.offered(0, at_s)
    log.stepped(steps(1, 0.1, 0.3))
    log.transferred(Transfer(0, 0, 1, 0.1, 0.2, 10, 0.1, 0.0))
    log.gauged(Gauge(1.0, 0, 1, 2, 3))
    log.happened(2.0, 1, "crashed")
    log.ended(outcome())
    return log


def test_equal_events_have_equal_hashes_and_the_last_bit_counts():
    assert told(EventLog()).hexdigest() == told(EventLog()).hexdigest()
    assert told(EventLog()).hexdigest() != told(EventLog(), 0.1 + 2**-55).hexdigest()


def test_each_event_is_a_line_of_the_file():
    stream = io.StringIO()
    log = told(EventLog(stream))
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [
        *("'offered'", "'stepped'", "'transferred'", "'gauged'", "'happened'", "'ended'")
    ]
    assert log.num_events == len(lines)
