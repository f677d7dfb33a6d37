"""When a worker counts as dead, and how often it is started again."""

from dataclasses import replace

import pytest

from twinpool.router.health import GiveUp, HealthSettings, Observation, Restart, decide

SETTINGS = HealthSettings(max_silent_s=5, max_start_s=100, max_restarts=4, stable_s=60, first_delay_s=1, max_delay_s=5)
WELL = Observation("w", has_exited=False, is_ready=True, silent_s=0.0, uptime_s=10.0, restarts=0)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (WELL, None),
        (replace(WELL, silent_s=5.0), None),
        (replace(WELL, silent_s=5.1), "it was silent for 5.1 s"),
        (replace(WELL, has_exited=True), "its process exited"),
        (replace(WELL, is_ready=False, silent_s=99.0), None),
        (replace(WELL, is_ready=False, silent_s=101.0), "it did not start within 100 s"),
        (replace(WELL, is_ready=False, has_exited=True), "its process exited"),
    ],
)
def test_only_the_dead_are_restarted_and_the_cause_is_named(seen: Observation, reason: str | None) -> None:
    expected = [] if reason is None else [Restart("w", 1.0, 1, reason)]
    assert decide([seen], SETTINGS) == expected


def test_delays_double_up_to_a_bound_and_then_it_gives_up() -> None:
    dead, delays = replace(WELL, has_exited=True), []
    while isinstance(decision := decide([dead], SETTINGS)[0], Restart):
        delays.append(decision.after_s)
        dead = replace(dead, restarts=decision.restarts)
    assert delays == [1.0, 2.0, 4.0, 5.0]
    assert decision == GiveUp("w", "its process exited, after 4 restarts in a row")


def test_a_worker_that_ran_for_long_starts_with_a_clean_record() -> None:
    dead = replace(WELL, has_exited=True, restarts=4, uptime_s=60.0)
    assert decide([dead], SETTINGS) == [Restart("w", 1.0, 1, "its process exited")]


def test_a_slow_start_is_no_clean_record() -> None:
    dead = replace(WELL, has_exited=True, is_ready=False, restarts=4, uptime_s=60.0)
    assert isinstance(decide([dead], SETTINGS)[0], GiveUp)


def test_decisions_keep_the_order_of_what_was_seen() -> None:
    seen = [replace(WELL, worker_id=name, has_exited=name != "b") for name in ("c", "b", "a")]
    assert [decision.worker_id for decision in decide(seen, SETTINGS)] == ["c", "a"]
