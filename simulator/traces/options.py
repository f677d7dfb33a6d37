"""How a trace is to be played: its format, rate, length, arrivals and goals, as every command asks for it.

Values and their limits only; open.py does what they say.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from twinpool.core.errors import SpecError
from twinpool.core.limits import Real, Whole, shown
from twinpool.simulator.traces.arrivals import Process, Step

MAX_S = 1e9
MAX_RPS = 1e6
_POSITIVE = Real(0, MAX_S, is_open=True)


class Format(StrEnum):
    """What a file of requests may be; docs/traces.md has an example of each."""

    AZURE = "azure"
    MOONCAKE = "mooncake"
    BURSTGPT = "burstgpt"
    LENGTHS = "lengths"  # lengths alone: arrivals are drawn
    REQUEST_LOG = "request-log"  # what our own gateways write


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What to make of a file of requests. Names are those of the command line, with units.

    Arrivals are the file's own, times ``scale``, or moved together or apart so that their mean rate over the whole
    file is ``rate_rps``. Where a file has none, or ``arrivals`` or ``steps`` says so, they are drawn at ``rate_rps`` or
    by ``steps``, and lengths are drawn from the file's rows with replacement. Cutting comes last.
    """

    format: Format | None = None  # None: by the file's first line
    rate_rps: float | None = None
    scale: float = 1.0  # times are multiplied by it: 0.5 is twice the rate
    duration_s: float = float("inf")
    requests: int | None = None
    repeat: bool = False  # begin again at the file's end, until duration_s or requests is full
    arrivals: Process | None = None  # None: the file's own, or Poisson where it has none
    cv: float = 1.0  # of gamma gaps
    steps: tuple[Step, ...] = ()
    independent: bool = False  # draw prompts and answers each on their own, as splitwise-sim's traces were
    goal_classes: tuple[tuple[str, float], ...] = ()  # (name, weight); empty: the file's own, or "default"
    max_tokens: int = 0  # clients' limit, at least each answer's length; 0: the file's own, or the answer's length
    seed: int = 0

    @property
    def draws_arrivals(self) -> bool:
        """Whether arrivals are drawn although the file may have some."""
        return self.arrivals is not None or bool(self.steps)

    def check(self) -> None:
        """Raise SpecError, naming the option, for what can hold for no file."""
        _refuse("--rate", self.rate_rps, Real(0, MAX_RPS, is_open=True), may_be_none=True)
        _refuse("--scale", self.scale, _POSITIVE)
        if self.duration_s != float("inf"):
            _refuse("--duration", self.duration_s, _POSITIVE)
        _refuse("--requests", self.requests, Whole(1, 10**12, may_be_none=True))
        _refuse("--cv", self.cv, Real(0, 1000, is_open=True))
        _refuse("--max-tokens", self.max_tokens, Whole(0, 2**24))
        _refuse("--seed", self.seed, Whole(0, 2**63))
        if self.rate_rps is not None and self.scale != 1.0:
            raise SpecError("--scale: cannot go with --rate, which says how far apart arrivals are")
        if self.steps and self.rate_rps is not None:
            raise SpecError("--step: cannot go with --rate: each step has its own")
        if self.repeat and self.requests is None and self.duration_s == float("inf"):
            raise SpecError("--repeat: needs --duration or --requests, or it would never end")


def _refuse(name: str, value: object, limit: Real | Whole, *, may_be_none: bool = False) -> None:
    if value is None and may_be_none:
        return
    if why := limit.refusal(value):
        raise SpecError(f"{name}: {why}")


def trace_options(*, step: str = "", goal_class: str = "", **others: Any) -> TraceOptions:
    """Options from what a command line holds: names for enums, and text for steps and goal classes.

    Args:
        step: as `parse_steps` reads it.
        goal_class: as `parse_goal_classes` reads it.
        others: TraceOptions' own; ``format`` and ``arrivals`` may be names, and None stands for the default.

    Raises:
        SpecError: an option is wrong; it is named as on the command line.
    """
    given = {name: value for name, value in others.items() if value is not None}
    if "max_tokens" in given:
        _refuse("--max-tokens", given["max_tokens"], Whole(1, 2**24))  # 0 stands for no limit here, and is none there
    for name, kinds in (("format", Format), ("arrivals", Process)):
        if name in given:
            given[name] = _one_of(name, given[name], kinds)
    options = TraceOptions(**given, steps=parse_steps(step), goal_classes=parse_goal_classes(goal_class))
    options.check()
    return options


def _one_of(name: str, value: Any, kinds: type[Format] | type[Process]) -> Format | Process:
    try:
        return kinds(value)
    except ValueError:
        raise SpecError(f"--{name}: {shown(value)} is not one of: {', '.join(kinds)}") from None


def parse_steps(text: str) -> tuple[Step, ...]:
    """``10@0,40@60`` as rates from times on: 10 requests/s from 0 s, 40 from 60 s. Empty text: none.

    Raises:
        SpecError: it reads otherwise, times do not ascend, or no rate is over 0.
    """
    steps = []
    for part in filter(None, map(str.strip, text.split(","))):
        rate, _, start = part.partition("@")
        try:
            steps.append(Step(float(rate), float(start)))
        except ValueError:
            raise SpecError(f"--step: {shown(part)} must be RATE@SECONDS, such as 10@0,40@60") from None
    for step in steps:
        _refuse("--step", step.rate_rps, Real(0, MAX_RPS))
        _refuse("--step", step.start_s, Real(0, MAX_S))
    if any(later.start_s <= earlier.start_s for earlier, later in pairwise(steps)):
        raise SpecError(f"--step: times must ascend, not {shown(text)}")
    if steps and not any(step.rate_rps for step in steps):
        raise SpecError("--step: nothing ever arrives at a rate of 0")
    return tuple(steps)


def parse_goal_classes(text: str) -> tuple[tuple[str, float], ...]:
    """``chat=3,batch=1`` as names and weights; a name alone has weight 1. Empty text: none.

    Raises:
        SpecError: a weight is no number over 0, or a name stands there twice.
    """
    classes: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, weight = part.partition("=")
        try:
            value = float(weight or 1)
        except ValueError:
            raise SpecError(f"--goal-class: {shown(part)} must be NAME=WEIGHT, such as chat=3,batch=1") from None
        _refuse("--goal-class", value, Real(0, 1e9, is_open=True))
        if not name or name in classes:
            raise SpecError(f"--goal-class: {shown(part)} must name a class, each once")
        classes[name] = value
    return tuple(classes.items())
