"""Faults that befall simulated workers, and the controller that starts them again, as router/health.py decides.

Knows processes, not requests.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, assert_never

from twinpool.core.errors import SpecError
from twinpool.router import health
from twinpool.router.health import GiveUp, HealthSettings, Observation, Restart
from twinpool.simulator.scenario import Fault, FaultKind, Scenario
from twinpool.simulator.world import Deed, World


class Processes(Protocol):
    """What befalls workers is done by the cluster."""

    def crash(self, place: int) -> None: ...
    def start(self, place: int, *, is_draining: bool) -> None: ...
    def drain(self, place: int, *, on: bool) -> None: ...
    def slow(self, place: int, factor: float) -> None: ...


@dataclass(slots=True)
class _Record:
    started_s: float = 0.0
    restarts: int = 0
    is_up: bool = True
    drains: int = 0  # under way
    factors: list[float] = field(default_factory=list)  # of slowness under way


class Caretaker:
    """Owns the record of each worker's starts, and of the faults that it is under: one that overlaps with others ends
    alone, and a worker that is started again is still under those that have not ended. Slowness multiplies. What
    befalls a worker that is down changes nothing."""

    def __init__(self, world: World, scenario: Scenario, processes: Processes) -> None:
        self._world = world
        self._start_s = scenario.start_s
        self._message_s = scenario.message_s
        self._ids = [worker.worker_id for worker in scenario.workers]
        self._processes = processes
        self._settings = HealthSettings()
        self._records = [_Record() for _ in self._ids]
        for fault in scenario.faults:
            if fault.worker_id not in self._ids:
                known = ", ".join(self._ids[:8]) + (", ..." if len(self._ids) > 8 else "")
                raise SpecError(f"fault: no worker {fault.worker_id}; workers: {known}")
            world.at(fault.at_s, partial(self._befall, fault, self._ids.index(fault.worker_id)))

    def _befall(self, fault: Fault, place: int) -> None:
        record = self._records[place]
        if not record.is_up:
            return
        match fault.kind:
            case FaultKind.CRASH:
                self._crash(place)
            case FaultKind.DRAIN:
                self._drain(place, +1)
                self._at_end(fault, partial(self._drain, place, -1))
            case FaultKind.SLOW:
                record.factors.append(fault.factor)
                self._slow(place)
                self._at_end(fault, partial(self._end_slowness, place, fault.factor))
            case _:
                assert_never(fault.kind)

    def _at_end(self, fault: Fault, deed: Deed) -> None:
        if math.isfinite(fault.duration_s):
            self._world.after(fault.duration_s, deed)

    def _drain(self, place: int, change: int) -> None:
        record = self._records[place]
        was_draining = record.drains > 0
        record.drains += change
        if (record.drains > 0) != was_draining:
            self._processes.drain(place, on=not was_draining)

    def _slow(self, place: int) -> None:
        self._processes.slow(place, math.prod(self._records[place].factors))

    def _end_slowness(self, place: int, factor: float) -> None:
        self._records[place].factors.remove(factor)
        self._slow(place)

    def _crash(self, place: int) -> None:
        record = self._records[place]
        record.is_up = False
        self._processes.crash(place)
        self._world.after(self._message_s, partial(self._noticed, place))

    def _noticed(self, place: int) -> None:
        record = self._records[place]
        seen = Observation(
            worker_id=self._ids[place],
            has_exited=True,
            is_ready=True,
            silent_s=0.0,
            uptime_s=self._world.now - record.started_s,
            restarts=record.restarts,
        )
        for decision in health.decide([seen], self._settings):
            match decision:
                case Restart(after_s=after_s, restarts=restarts):
                    record.restarts = restarts
                    self._world.after(after_s + self._start_s, partial(self._started, place))
                case GiveUp():
                    pass
                case _:
                    assert_never(decision)

    def _started(self, place: int) -> None:
        record = self._records[place]
        record.is_up, record.started_s = True, self._world.now
        self._processes.start(place, is_draining=record.drains > 0)
        if record.factors:
            self._slow(place)
