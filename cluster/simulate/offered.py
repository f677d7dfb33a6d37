"""Looks through a trace before it is run: which of its requests a gateway would take, and what is wrong with others.

Knows the cluster's limits and goals; runs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinpool.core.errors import SpecError
from twinpool.core.limits import shown
from twinpool.core.spec import ClusterSpec
from twinpool.simulator.report import Window
from twinpool.simulator.trace import Trace, TraceRequest
from twinpool.simulator.traces.lines import Findings
from twinpool.simulator.traces.options import MAX_S


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cluster takes, and what is done with what it does not."""

    spec: ClusterSpec
    skips_too_long: bool = False

    def is_too_long(self, request: TraceRequest) -> bool:
        """Whether a live gateway would refuse it for its length."""
        return request.prompt_tokens + request.output_tokens > self.spec.model.max_model_len

    def refusal(self, request: TraceRequest) -> str | None:
        """Why it cannot be run; None where it can, or is left out."""
        if request.goal_class not in self.spec.goals:
            return f"is of class {shown(request.goal_class)}; goals has {', '.join(sorted(self.spec.goals))}"
        if self.is_too_long(request) and not self.skips_too_long:
            told = f"{request.prompt_tokens} + {request.output_tokens} tokens"
            return f"has {told}, over model.max_model_len {self.spec.model.max_model_len}; see --skip-too-long"
        return None


@dataclass(frozen=True, slots=True)
class Offered:
    """What a trace will offer, and which part of it counts."""

    requests: int
    too_long: int  # left out
    window: Window


def look_through(trace: Trace, path: Path, limits: Limits, warmup_s: float = 0.0, cooldown_s: float = 0.0) -> Offered:
    """Play a trace without running it.

    Raises:
        SpecError: lines are refused (``FILE:LINE: why``, up to 20, each once), nothing would be offered or measured,
            or it takes longer than times are exact.
    """
    findings, told = Findings(path), set[int]()
    requests = too_long = 0
    last_s, first_measured_s = 0.0, float("inf")
    for request in trace:
        last_s = request.arrival_s
        why = limits.refusal(request)
        if why is not None and request.line not in told:
            told.add(request.line)
            findings.add(request.line, why)
        if limits.is_too_long(request):
            too_long += 1
            continue
        requests += 1
        if request.arrival_s >= warmup_s:
            first_measured_s = min(first_measured_s, request.arrival_s)
    findings.refuse()
    if not requests:
        all_left_out = f"nothing is left to run: over model.max_model_len, and left out: {too_long:,}"
        raise SpecError(f"{path}: {all_left_out if too_long else 'no request arrives in what is played of it'}")
    if last_s > MAX_S:
        raise SpecError(f"{path}: takes {last_s:.3g} s as it is played; {MAX_S:g} s is the most: raise the rate")
    end_s = last_s - cooldown_s if cooldown_s else float("inf")
    if first_measured_s >= end_s:
        raise SpecError(f"--warmup and --cooldown leave no request of {path}, whose last arrives at {last_s:.4g} s")
    return Offered(requests, too_long, Window(warmup_s, end_s))


class Taken:
    """The requests of a trace that a gateway would take."""

    def __init__(self, trace: Trace, path: Path, limits: Limits) -> None:
        self._trace = trace
        self._path = path
        self._limits = limits

    def __iter__(self) -> Iterator[TraceRequest]:
        """Raises SpecError at one that is refused, should the file have changed since it was looked through."""
        for request in self._trace:
            if why := self._limits.refusal(request):
                raise SpecError(f"{self._path}:{request.line}: {why}")
            if not self._limits.is_too_long(request):
                yield request
