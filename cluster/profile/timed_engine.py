"""An engine that notes how long each of its steps took, bookkeeping included, and what the step was made of.

Knows the engine's loop; neither why it is timed nor what is made of it.
"""

from collections.abc import Callable
from typing import Any, cast

from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import EngineEvents
from twinpool.cluster.profile.rows import TimedStep, describe
from twinpool.core.messages import WorkerConfig
from twinpool.model.batch import Batch, OnLayers, Runner, StepResult


class TimedEngine(Engine):
    """See ``Engine``."""

    def __init__(self, config: WorkerConfig, runner: Runner, events: EngineEvents, clock: Callable[[], float]) -> None:
        self._timed = _TimedRunner(runner, clock)
        self._now = clock
        self._steps: list[TimedStep] = []
        super().__init__(config, cast("Runner", self._timed), events, clock)

    def step(self) -> bool:
        started_s = self._now()
        worked = super().step()
        if (run := self._timed.take()) is not None:
            batch, run_s = run
            self._steps.append(TimedStep(started_s, self._now() - started_s, run_s, *describe(batch)))
        return worked

    def take_steps(self) -> list[TimedStep]:
        """The steps that ended since the last call."""
        steps, self._steps = self._steps, []
        return steps


class _TimedRunner:
    """A runner (``twinpool.model.batch.Runner``) that remembers its last run."""

    def __init__(self, runner: Runner, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self._last: tuple[Batch, float] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, batch: Batch, on_layers: OnLayers | None = None) -> StepResult:
        started_s = self._clock()
        result = self._runner.run(batch, on_layers)
        self._last = (batch, self._clock() - started_s)
        return result

    def take(self) -> tuple[Batch, float] | None:
        last, self._last = self._last, None
        return last
