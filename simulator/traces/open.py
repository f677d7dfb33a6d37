"""Opens a file of requests, whatever its format, as a trace that is played as often as it is asked for.

Knows what options ask for; how a format's lines read, and how chance is drawn, are other files' business.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from twinpool.core.errors import SpecError
from twinpool.simulator.trace import TraceRequest
from twinpool.simulator.traces.arrivals import Process, Step, stream_arrivals
from twinpool.simulator.traces.entry import Entry
from twinpool.simulator.traces.options import Format, TraceOptions, trace_options
from twinpool.simulator.traces.play import as_requests, cut, drawn_classes, drawn_lengths, own_times
from twinpool.simulator.traces.source import Survey, play_entries, recognise, survey_entries, survey_lengths

__all__ = ["OpenedTrace", "TraceOptions", "open_trace", "trace_options"]

_TIMES, _PROMPTS, _OUTPUTS, _CLASSES = range(4)  # what chance is for: each draws from a generator of its own


@dataclass(frozen=True, slots=True)
class OpenedTrace:
    """A `Trace`: requests in order of arrival, the same ones at every turn; constant memory, drawn lengths aside."""

    path: Path
    format: Format
    num_skipped: int  # lines without an answer, of those looked at: failed requests, say
    _play: Callable[[], Iterator[TraceRequest]]
    has_times: bool = True

    def __iter__(self) -> Iterator[TraceRequest]:
        return self._play()


def open_trace(path: Path, options: TraceOptions | None = None) -> OpenedTrace:
    """Check every line that will be played; the trace then is played as ``options`` say.

    Raises:
        SpecError: an option is wrong, or the file: one ``FILE:LINE: reason`` for each bad line, up to 20. Playing
            raises it too, at the first bad line, should the file have changed meanwhile.
    """
    options = options or TraceOptions()
    options.check()
    kind = options.format or recognise(path)
    if kind is Format.LENGTHS or options.draws_arrivals:
        return _open_drawn(path, kind, options)
    if options.independent:
        raise SpecError("--independent: lengths are the file's own, unless --arrivals or --step has them drawn")
    survey = survey_entries(path, kind, partial(_is_enough, options))
    factor, period_s = _factor(path, survey, options), None
    if options.repeat:
        period_s = survey.period_s * factor
        if not period_s:
            raise SpecError(f"--repeat: all requests of {path} come at once: there is no time after which to repeat")

    def play() -> Iterator[TraceRequest]:
        arrivals = own_times(partial(play_entries, path, kind), survey.first_ns, factor, period_s)
        return _finished(arrivals, options, options.requests)

    return OpenedTrace(path, kind, survey.num_skipped, play)


def open_to_describe(path: Path, options: TraceOptions) -> OpenedTrace:
    """As `open_trace`, but a file without times may do without a rate: then its rows come once each, all at 0 s."""
    kind = options.format or recognise(path)
    if kind is not Format.LENGTHS or options.rate_rps is not None or options.steps:
        return open_trace(path, options)
    survey = survey_lengths(path, kind)

    def play() -> Iterator[TraceRequest]:
        rows = zip(survey.prompt_tokens, survey.output_tokens, survey.lines, strict=True)
        arrivals = ((0.0, Entry(0, prompt, output, line=line)) for prompt, output, line in rows)
        return _finished(arrivals, options, options.requests)

    return OpenedTrace(path, kind, survey.num_skipped, play, has_times=False)


def _is_enough(options: TraceOptions, num_requests: int, so_far_ns: int) -> bool:
    """Whether what follows in the file matters no more. The mean rate, and where a file begins again, are its end's."""
    if options.rate_rps is not None or options.repeat:
        return False
    return num_requests == options.requests or so_far_ns / 1e9 * options.scale >= options.duration_s


def _factor(path: Path, survey: Survey, options: TraceOptions) -> float:
    """By which times are multiplied."""
    if options.rate_rps is None:
        return options.scale
    if not survey.mean_gap_s:
        raise SpecError(
            f"--rate: all requests of {path} come at once: no pace makes that {options.rate_rps:g} a second"
        )
    return 1 / (survey.mean_gap_s * options.rate_rps)


def _open_drawn(path: Path, kind: Format, options: TraceOptions) -> OpenedTrace:
    if options.scale != 1.0:
        raise SpecError("--scale: arrivals are drawn here: --rate says how many a second")
    if options.repeat:
        raise SpecError("--repeat: arrivals are drawn here, for as long as --duration or --requests says")
    if options.rate_rps is None and not options.steps:
        raise SpecError(f"--rate: has to say how many requests arrive a second, as no times of {path} are taken")
    process = options.arrivals or Process.POISSON
    if options.cv != 1.0 and process is not Process.GAMMA:
        raise SpecError("--cv: is for --arrivals gamma")
    steps = options.steps or (Step(options.rate_rps or 0.0),)
    survey = survey_lengths(path, kind)
    is_bounded = options.requests is not None or options.duration_s != float("inf")
    most = options.requests if is_bounded else survey.num_requests

    def play() -> Iterator[TraceRequest]:
        for_lengths = [_PROMPTS, _OUTPUTS] if options.independent else [_PROMPTS]
        rngs = [_chance(options, what) for what in for_lengths]
        times = stream_arrivals(_chance(options, _TIMES), process, steps, cv=options.cv)
        lengths = drawn_lengths(survey.prompt_tokens, survey.output_tokens, survey.lines, rngs)
        return _finished(zip(times, lengths, strict=False), options, most)

    return OpenedTrace(path, kind, survey.num_skipped, play)


def _finished(
    arrivals: Iterator[tuple[float, Entry]], options: TraceOptions, most: int | None
) -> Iterator[TraceRequest]:
    classes = drawn_classes(_chance(options, _CLASSES), options.goal_classes) if options.goal_classes else None
    return cut(as_requests(arrivals, classes, options.max_tokens), options.duration_s, most)


def _chance(options: TraceOptions, what: int) -> np.random.Generator:
    """Of its own for each use, so that another rate changes no lengths, and so on."""
    return np.random.default_rng([options.seed, what])
