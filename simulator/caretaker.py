"""Faults that befall simulated workers, and the controller that starts them again, as router/health.py decides.

Knows processes, not requests.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, assert_never

from twinpool.core.errors import SpecError
from twinpool.router import health
from twinpool.router.health import GiveUp, HealthSettings, Observation, Restart
from twinpool.simulator.scenario import Fault, FaultKind, Scenario
from twinpool.simulator.world import World


class Processes(Protocol):
    """What befalls workers is done by the cluster."""

    def crash(self, place: int) -> None: ...
    def start(self, place: int) -> None: ...
    def drain(self, place: int, *, on: bool) -> None: ...
    def slow(self, place: int, factor: float) -> None: ...


@dataclass(slots=True)
class _Record:
    started_s: float = 0.0
    restarts: int = 0
    is_up: bool = True


class Caretaker:
    """Owns the record of each worker's starts."""

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
        ends_s = self._world.now + fault.duration_s
        match fault.kind:
            case FaultKind.CRASH:
                self._crash(place)
            case FaultKind.DRAIN:
                self._processes.drain(place, on=True)
                if ends_s < float("inf"):
                    self._world.at(ends_s, partial(self._processes.drain, place, on=False))
            case FaultKind.SLOW:
                self._processes.slow(place, fault.factor)
                if ends_s < float("inf"):
                    self._world.at(ends_s, partial(self._processes.slow, place, 1.0))
            case _:
                assert_never(fault.kind)

    def _crash(self, place: int) -> None:
        record = self._records[place]
        if not record.is_up:
            return
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
        self._processes.start(place)
