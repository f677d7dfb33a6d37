"""The report of a simulated run, made as it goes: an observer whose memory does not grow with requests or steps.

Knows what is worth telling of a run; nothing of how it is shown.
"""

import math
from collections import Counter
from dataclasses import dataclass

from twinpool.core.errors import SpecError
from twinpool.simulator.energy import Energy, cost_values, energy_values
from twinpool.simulator.observer import Gauge, Observer, Steps, Transfer
from twinpool.simulator.outcome import Outcome
from twinpool.simulator.scenario import Scenario
from twinpool.simulator.sketch import Sketch
from twinpool.simulator.step_columns import FLUSH_AT, clipped, columns_of
from twinpool.simulator.tally import Tally, Values
from twinpool.simulator.usage import Usage


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run that is measured: requests that arrive in ``[start_s, end_s)``, and what workers do then."""

    start_s: float = 0.0
    end_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.start_s < self.end_s:
            raise SpecError(f"--warmup and --cooldown leave nothing between {self.start_s:g} s and {self.end_s:g} s")

    def holds(self, at_s: float) -> bool:
        """Whether something at that time counts."""
        return self.start_s <= at_s < self.end_s

    def num_held(self, at_s: float, num: int) -> int:
        """How many count of so many things, a second apart, the first at that time."""
        first = max(0, math.ceil(self.start_s - at_s))
        end = num if math.isinf(self.end_s) else min(num, math.ceil(self.end_s - at_s))
        return max(0, end - first)


class Report(Observer):
    """Counts everything that is told of one run; ask it once the run is over.

    The gaps between tokens (ITL) are those of the workers' steps: each step that decodes a batch is one gap for each of
    its sequences. The step that a sequence joins in follows its handoff; such first gaps are counted from the outcomes,
    and the steps' weights reduced by as many.
    """

    def __init__(self, scenario: Scenario, window: Window | None = None) -> None:
        self._scenario = scenario
        self._window = window or Window()
        self._total: Tally | None = None  # once asked for
        self.by_class: dict[str, Tally] = {}
        self.usage = Usage(scenario.workers, self._window.start_s)
        self._energy = Energy(scenario.workers)
        self._gaps = Sketch()
        self._steps: list[Steps] = []
        self._transfers: Counter[str] = Counter()
        self._transfer_s = {"wire_s": 0.0, "exposed_s": 0.0}
        self._events: list[tuple[float, str]] = []  # few, and none of them a request's
        self._waits = {name: Sketch() for name in ("held", "in_flight", "waiting_prefill_tokens")}
        self._is_closed = False

    # --- observer -------------------------------------------------------------------------------------------------

    def stepped(self, steps: Steps) -> None:
        self._steps.append(steps)
        if len(self._steps) >= FLUSH_AT:
            self._flush()

    def transferred(self, transfer: Transfer) -> None:
        if self._window.holds(transfer.started_s):
            self._transfers["count"] += 1
            self._transfers["bytes"] += transfer.num_bytes
            self._transfer_s["wire_s"] += transfer.wire_s
            self._transfer_s["exposed_s"] += transfer.exposed_s

    def gauged(self, gauge: Gauge) -> None:
        num = self._window.num_held(gauge.at_s - (gauge.num - 1), gauge.num)
        if num:
            for name, sketch in self._waits.items():
                sketch.add(getattr(gauge, name), num)

    def happened(self, at_s: float, worker: int, what: str) -> None:  # noqa: ARG002
        if self._window.holds(at_s):
            self._events.append((at_s, what.partition(" ")[0]))

    def ended(self, outcome: Outcome) -> None:
        if self._window.holds(outcome.arrival_s):
            self._total = None
            tally = self.by_class.get(outcome.offered.goal_class)
            if tally is None:
                tally = self.by_class[outcome.offered.goal_class] = Tally()
            tally.add(outcome)

    # --- the report -----------------------------------------------------------------------------------------------

    @property
    def total(self) -> Tally:
        """All classes together."""
        if self._total is None:
            self._total = Tally()
            for name in sorted(self.by_class):
                self._total.merge(self.by_class[name])
        return self._total

    @property
    def end_s(self) -> float:
        """Of what is measured: the window's end, or that of the last request where it has none."""
        return self._window.end_s if math.isfinite(self._window.end_s) else self.total.last_end_s

    @property
    def duration_s(self) -> float:
        """What rates are per: from the window's begin to the end of what is measured."""
        return max(0.0, self.end_s - self._window.start_s)

    def values(self) -> Values:
        """The whole report, in the keys of `twinpool bench serve` where both have them."""
        self._close()
        duration_s, total = self.duration_s, self.total
        num_gpus = sum(worker.kind.gpus for worker in self._scenario.workers)
        watt_hours = self._energy.watt_hours(self.usage.busy_s, duration_s)
        return {
            **total.values(duration_s),
            "goodput_rps_per_gpu": total.met / duration_s / num_gpus if duration_s else None,
            "itl_s": self.itl().percentiles(),
            "phases": total.phase_values(),
            "transfers": self._transfer_values(),
            "waiting": {name: {"mean": s.mean, "max": s.largest} for name, s in self._waits.items()},
            "utilisation": self.usage.pool_values(duration_s),
            "cost": cost_values(self._scenario.workers, duration_s, total.completed, total.tokens),
            "energy": energy_values(watt_hours, duration_s, total.completed),
            "attempts": {str(number): count for number, count in sorted(total.attempts.items())},
            "prefix_cache_hit_share": total.cached_tokens / total.prompt_tokens if total.prompt_tokens else None,
            "events": dict(Counter(what for at_s, what in self._events if at_s <= self.end_s)),
            "duration_s": duration_s,
            "workers": len(self._scenario.workers),
            "gpus": num_gpus,
            "by_class": {name: self._class_values(name) for name in sorted(self.by_class)},
            "by_worker": self.usage.worker_values(duration_s),
        }

    def itl(self) -> Sketch:
        """Gaps between tokens of all sequences."""
        self._flush()
        first = self.total.first_gaps
        share = 1 - first.count / self._gaps.count if self._gaps.count else 0.0
        gaps = self._gaps.scaled(max(0.0, share))
        gaps.merge(first)
        return gaps

    def over_time(self) -> Values:
        """Utilisation of each pool over time."""
        self._close()
        return self.usage.over_time_values()

    def _class_values(self, name: str) -> Values:
        goal = self._scenario.goals.get(name, self._scenario.goals["default"]).goal
        tally = self.by_class[name]
        return {**tally.values(self.duration_s), "goal": {"ttft_s": goal.ttft_s, "tpot_s": goal.tpot_s}}

    def _transfer_values(self) -> Values:
        wire_s, num_bytes = self._transfer_s["wire_s"], self._transfers["bytes"]
        return {
            "count": self._transfers["count"],
            "bytes": num_bytes,
            **self._transfer_s,
            "bytes_per_wire_s": num_bytes / wire_s if wire_s else None,
            "hidden_share": 1 - self._transfer_s["exposed_s"] / wire_s if wire_s else None,
        }

    def _flush(self) -> None:
        if not self._steps:
            return
        columns = clipped(columns_of(self._steps), self._window.start_s, self._window.end_s)
        self._steps = []
        self.usage.add(columns)
        self._energy.add(columns)
        decoding = (columns.batch > 0) & (columns.num_steps > 0)
        gaps_s = (columns.ended_s - columns.started_s)[decoding] / columns.num_steps[decoding]
        self._gaps.add_many(gaps_s, columns.num_steps[decoding] * columns.batch[decoding])

    def _close(self) -> None:
        self._flush()
        if not self._is_closed:
            self.usage.close(self._window.start_s + self.duration_s)
            self._is_closed = True
