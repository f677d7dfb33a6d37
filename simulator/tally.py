"""What became of many requests: counts, percentiles and means, in memory that does not grow with them.

Knows outcomes; no worker and no step.
"""

from collections import Counter
from itertools import islice

from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.sketch import Sketch

Values = dict[str, object]

MAX_REASONS = 100  # kept apart
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
PHASES = ("held_s", "queued_s", "prefill_s", "handoff_s", "wire_s", "exposed_s")


class Tally:
    """Counts outcomes of one class of requests, or of all."""

    def __init__(self) -> None:
        self.endings: Counter[Ending] = Counter()
        self.reasons: Counter[str] = Counter()
        self.met = 0
        self.tokens = 0  # delivered, to whomever
        self.prompt_tokens = 0  # of completed requests
        self.cached_tokens = 0
        self.attempts: Counter[int] = Counter()
        self.last_end_s = 0.0
        self.first_gaps = Sketch()  # see Report
        self._sketches = {name: Sketch() for name in LATENCIES + PHASES}

    def add(self, outcome: Outcome) -> None:
        """Count one request that ended."""
        self.endings[outcome.ending] += 1
        self.met += outcome.met
        self.tokens += outcome.num_tokens
        self.attempts[outcome.attempts] += 1
        self.last_end_s = max(self.last_end_s, outcome.end_s)
        if outcome.ending is Ending.COMPLETED:
            self._add_completed(outcome)
        elif outcome.why in self.reasons or len(self.reasons) < MAX_REASONS:
            self.reasons[outcome.why] += 1
        else:
            self.reasons["others"] += 1

    def _add_completed(self, outcome: Outcome) -> None:
        self.prompt_tokens += outcome.offered.prompt_tokens
        self.cached_tokens += outcome.cached_tokens
        for name, sketch in self._sketches.items():
            value = getattr(outcome, name)
            if value is not None:
                sketch.add(max(0.0, value))  # durations may come out a rounding below 0
        tpot_s = outcome.tpot_s
        if tpot_s is not None:
            own_s = tpot_s - outcome.handoff_s / (outcome.num_tokens - 1)
            self.first_gaps.add(max(0.0, outcome.handoff_s + own_s))

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

    def sketch(self, name: str) -> Sketch:
        """Of one of LATENCIES or PHASES, over completed requests."""
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
            **{name: self._sketches[name].percentiles() for name in LATENCIES},
            "requests_per_s": rate(self.completed),
            "tokens_per_s": rate(self.tokens),
            "prompt_tokens_per_s": rate(self.prompt_tokens),
            "reasons": dict(islice(self.reasons.most_common(), 20)),
        }

    def phase_values(self) -> dict[str, Values]:
        """Mean and percentiles of each phase, over completed requests."""
        return {name: {"mean": self._sketches[name].mean, **self._sketches[name].percentiles()} for name in PHASES}
