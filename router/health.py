"""Which workers have died, and whether and when to start each again.

Knows no process and no clock: it is told what was seen, and how long ago.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one worker's process."""

    worker_id: str
    has_exited: bool  # its exit was seen, or its host is gone
    is_ready: bool  # it has said hello since its start
    silent_s: float  # since it was last heard, or since its start if never
    uptime_s: float  # from its start to now, or to its exit
    restarts: int  # as the last decision on it said; 0 before the first


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """When silence is death, and how often to try again."""

    max_silent_s: float = 5.0
    max_start_s: float = 120.0  # a starting worker loads its weights
    max_restarts: int = 5  # one after another, each soon after the last
    stable_s: float = 60.0  # a worker that ran for so long starts with a clean record
    first_delay_s: float = 0.25
    max_delay_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Restart:
    """End what may be left of the worker's process, and start it anew ``after_s`` seconds from now."""

    worker_id: str
    after_s: float
    restarts: int  # the count to observe it with from now on
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End what may be left of the worker's process, and leave it down until someone asks for it."""

    worker_id: str
    reason: str


def decide(observations: Sequence[Observation], settings: HealthSettings) -> list[Restart | GiveUp]:
    """Decide for every worker that is dead, in the order given; workers that live are left out.

    The delay doubles with each restart in a row, so that a worker that cannot start does not keep a machine busy.
    """
    return [
        _restart_or_give_up(seen, reason, settings)
        for seen in observations
        if (reason := _cause_of_death(seen, settings)) is not None
    ]


def _cause_of_death(seen: Observation, settings: HealthSettings) -> str | None:
    if seen.has_exited:
        return "its process exited"
    if seen.is_ready and seen.silent_s > settings.max_silent_s:
        return f"it was silent for {seen.silent_s:.1f} s"
    if not seen.is_ready and seen.silent_s > settings.max_start_s:
        return f"it did not start within {settings.max_start_s:.0f} s"
    return None


def _restart_or_give_up(seen: Observation, reason: str, settings: HealthSettings) -> Restart | GiveUp:
    restarts = 0 if seen.is_ready and seen.uptime_s >= settings.stable_s else seen.restarts
    if restarts >= settings.max_restarts:
        return GiveUp(seen.worker_id, f"{reason}, after {restarts} restarts in a row")
    after_s = min(settings.max_delay_s, settings.first_delay_s * 2.0**restarts)
    return Restart(seen.worker_id, after_s, restarts + 1, reason)
