"""A limit expires once its body takes too long, and never afterwards."""

import threading
from collections.abc import Iterator

import pytest

from twinpool.client.watchdog import Watchdog


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog()
    yield watchdog
    watchdog.close()


def test_a_body_that_takes_too_long_is_called_back(watchdog: Watchdog) -> None:
    woken = threading.Event()
    with watchdog.limit(0.01, woken.set) as limit:
        assert woken.wait(5)
    assert limit.expired


def test_a_shorter_limit_is_noticed_while_a_longer_one_is_open(watchdog: Watchdog) -> None:
    woken = threading.Event()
    with watchdog.limit(60, lambda: None) as longer, watchdog.limit(0.01, woken.set):
        assert woken.wait(5)
    assert not longer.expired


def test_a_limit_that_was_left_does_not_expire(watchdog: Watchdog) -> None:
    calls, woken = [], threading.Event()
    for _ in range(100):
        with watchdog.limit(0.05, lambda: calls.append(1)):
            pass
    with watchdog.limit(0.1, woken.set):  # later than all of them
        assert woken.wait(5)
    assert calls == []


def test_a_closed_watchdog_has_no_thread() -> None:
    watchdog = Watchdog()
    with watchdog.limit(60, lambda: None):
        thread = watchdog._thread
    watchdog.close()
    assert thread is not None
    assert not thread.is_alive()
