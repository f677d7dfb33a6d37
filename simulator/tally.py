"""What became of many requests: counts, percentiles and means, in memory that does not grow with them.

Knows outcomes; no worker and no step.
"""

from collections import Counter
from typing import Self

import numpy as np

from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.reasons import Reasons
from twinpool.simulator.sketch import Sketch

Values = dict[str, object]

TOLD_REASONS = 20
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
PHASES = ("held_s", "queued_s", "prefill_s", "handoff_s", "wire_s", "exposed_s")
_FIRST_GAP = "first_gap_s"  # see Report
_COLUMNS = (*LATENCIES, *PHASES, _FIRST_GAP)
_FLUSH_AT = 4096
_NONE = float("nan")


class Tally:
    """Counts outcomes of one class of requests, or of all."""

    def __init__(self) -> None:
        self.endings: Counter[Ending] = Counter()
        self.reasons = Reasons()
        self.met = 0
        self.tokens = 0  # delivered, to whomever
        self.prompt_tokens = 0  # of completed requests
        self.cached_tokens = 0
        self.attempts: Counter[int] = Counter()
        self.last_end_s = 0.0
        self._sketches = {name: Sketch() for name in _COLUMNS}
        self._rows: list[tuple[float, ...]] = []  # of _COLUMNS, not in the sketches yet

    def add(self, outcome: Outcome) -> None:
        """Count one request that ended."""
        self.endings[outcome.ending] += 1
        self.met += outcome.met
        self.tokens += outcome.num_tokens
        self.attempts[outcome.attempts] += 1
        self.last_end_s = max(self.last_end_s, outcome.end_s)
        if outcome.ending is Ending.COMPLETED:
            self._add_completed(outcome)
        else:
            self.reasons.add(outcome.why)

    def _add_completed(self, outcome: Outcome) -> None:
        self.prompt_tokens += outcome.offered.prompt_tokens
        self.cached_tokens += outcome.cached_tokens
        ttft_s, tpot_s, handoff_s = outcome.ttft_s, outcome.tpot_s, outcome.handoff_s
        first_gap_s = _NONE
        if tpot_s is not None:
            first_gap_s = handoff_s + tpot_s - handoff_s / (outcome.num_tokens - 1)
        self._rows.append(
            (
                _NONE if ttft_s is None else ttft_s,
                _NONE if tpot_s is None else tpot_s,
                outcome.e2e_s,
                outcome.held_s,
                outcome.queued_s,
                outcome.prefill_s,
                handoff_s,
                outcome.wire_s,
                outcome.exposed_s,
                first_gap_s,
            )
        )
        if len(self._rows) >= _FLUSH_AT:
            self._flush()

    def _flush(self) -> None:
        table = np.array(self._rows, dtype=np.float64).reshape(-1, len(_COLUMNS))
        self._rows = []
        for sketch, column in zip(self._sketches.values(), table.T, strict=True):
            there = column[~np.isnan(column)]
            sketch.add_many(there.clip(0.0))  # durations may come out a rounding below 0

    def merge(self, other: "Tally") -> Self:
        """Count all that another tally has, too; returns this one."""
        self.endings.update(other.endings)
        self.attempts.update(other.attempts)
        self.reasons.merge(other.reasons)
        for name in ("met", "tokens", "prompt_tokens", "cached_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last_end_s = max(self.last_end_s, other.last_end_s)
        for name in _COLUMNS:
            self.sketch(name).merge(other.sketch(name))
        return self

    @property
    def requests(self) -> int:
        """All that ended, one way or another."""
        return self.endings.total()

    @property
    def completed(self) -> int:
        return self.endings[Ending.COMPLETED]

    @property
    def attainment(self) -> float | None:
        """Share of all offered requests that met both goals; None where there were none."""
        return self.met / self.requests if self.requests else None

    @property
    def first_gaps(self) -> Sketch:
        """Of completed requests with two tokens or more: first token to the second."""
        return self.sketch(_FIRST_GAP)

    def sketch(self, name: str) -> Sketch:
        """Of one of LATENCIES or PHASES, over completed requests."""
        self._flush()
        return self._sketches[name]

    def values(self, duration_s: float) -> Values:
        """Counts, attainment, rates and latencies, in the keys of `twinpool bench serve`."""

        def rate(amount: float) -> float | None:
            return amount / duration_s if duration_s > 0 else None

        return {
            "requests": self.requests,
            **{str(ending): self.endings[ending] for ending in Ending},
            "met": self.met,
            "slo_attainment": self.attainment,
            "goodput_rps": rate(self.met),
            **{name: self.sketch(name).percentiles() for name in LATENCIES},
            "requests_per_s": rate(self.completed),
            "tokens_per_s": rate(self.tokens),
            "prompt_tokens_per_s": rate(self.prompt_tokens),
            "reasons": self.reasons.most_common(TOLD_REASONS),
        }

    def phase_values(self) -> dict[str, Values]:
        """Mean and percentiles of each phase, over completed requests."""
        return {name: {"mean": self.sketch(name).mean, **self.sketch(name).percentiles()} for name in PHASES}
