"""The command `twinpool simulate`. Imports what it needs when it is run, so that others start fast."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from twinpool.cluster.cli_options import JsonOption

SpecArgument = Annotated[Path, typer.Argument(help="the cluster's YAML file", metavar="CLUSTER.yaml")]
TraceArgument = Annotated[
    Path | None,
    typer.Argument(help="requests: their times and lengths; docs/traces.md has the formats", metavar="TRACE"),
]
SECONDS = {"min": 0.0, "max": 1e9}


def simulate(
    spec: SpecArgument,
    trace: TraceArgument = None,
    format: Annotated[str | None, typer.Option(help="of the trace; by its first line", metavar="NAME")] = None,
    rate: Annotated[float | None, typer.Option(help="mean requests/s: times are stretched to it, or drawn")] = None,
    scale: Annotated[float | None, typer.Option(help="times of the trace are multiplied by it")] = None,
    duration: Annotated[float | None, typer.Option(help="seconds of the trace")] = None,
    requests: Annotated[int | None, typer.Option(help="at most so many")] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="begin the trace again where it ends")] = False,
    arrivals: Annotated[str | None, typer.Option(help="draw them: poisson, gamma, constant", metavar="NAME")] = None,
    cv: Annotated[float | None, typer.Option(help="of gamma gaps: deviation over mean")] = None,
    step: Annotated[str, typer.Option(help="rates from times on: 10@0,40@60", metavar="RATE@S,...")] = "",
    independent: Annotated[
        bool, typer.Option("--independent", help="draw prompts and answers each on their own, where lengths are drawn")
    ] = False,
    goal_class: Annotated[str, typer.Option(help="classes by weight: chat=3,batch=1", metavar="NAME=N,...")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="limit that clients set; each answer's length")] = None,
    seed: Annotated[int, typer.Option(help="of all that is drawn", min=0)] = 0,
    policy: Annotated[str | None, typer.Option(help="instead of router.policy", metavar="NAME")] = None,
    gateways: Annotated[int | None, typer.Option(help="instead of gateway.replicas", min=1, max=64)] = None,
    latency: Annotated[
        Path | None, typer.Option(help="what steps take: a profile (.json), or measured rows (.csv)", metavar="FILE")
    ] = None,
    latency_rows: Annotated[
        str | None, typer.Option(help="which rows of a .csv: llama2-70b,h100-80gb", metavar="MODEL,GPU")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="GPUs of pools that name none", metavar="GPU")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="GPUs of each worker", min=1, max=64)] = None,
    kv_memory: Annotated[
        str | None, typer.Option(help="instead of kv.memory; auto: what the GPUs have room for", metavar="BYTES")
    ] = None,
    noise: Annotated[float, typer.Option(help="deviation of a step's time over its mean", min=0, max=2)] = 0.0,
    fault: Annotated[
        list[str] | None, typer.Option(help="such as 'crash decode-1 at 30'; may be repeated", metavar="FAULT")
    ] = None,
    skip_too_long: Annotated[
        bool, typer.Option("--skip-too-long", help="leave out requests over model.max_model_len")
    ] = False,
    warmup: Annotated[float, typer.Option(help="seconds at the begin that are not measured", **SECONDS)] = 0.0,
    cooldown: Annotated[float, typer.Option(help="seconds before the last arrival, as well", **SECONDS)] = 0.0,
    sweep: Annotated[
        str | None, typer.Option(help="find the largest rate that is met", metavar="rate=LOW:HIGH")
    ] = None,
    attainment: Annotated[float, typer.Option(help="share of requests that --sweep wants met", min=0.01, max=1)] = 0.9,
    seeds: Annotated[int, typer.Option(help="of --sweep at each rate, from --seed on", min=1, max=100)] = 3,
    plot: Annotated[Path | None, typer.Option(help="draw PNG and SVG files there", metavar="FOLDER")] = None,
    timeline: Annotated[Path | None, typer.Option(help="write it for ui.perfetto.dev", metavar="FILE")] = None,
    timeline_requests: Annotated[int, typer.Option(help="that --timeline draws", min=1)] = 2000,
    event_log: Annotated[Path | None, typer.Option(help="write all events, a line each", metavar="FILE")] = None,
    progress: Annotated[bool, typer.Option(help="a bar on a terminal, from 2 s on")] = True,
    describe_trace: Annotated[
        bool, typer.Option("--describe-trace", help="TRACE's lengths and rate; run nothing, need no CLUSTER.yaml")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a trace against a cluster's YAML in virtual time, and report latencies, goodput, utilisation and cost."""
    from twinpool.simulator.traces.options import trace_options

    options = trace_options(
        step=step,
        goal_class=goal_class,
        format=format,
        rate_rps=rate,
        scale=scale,
        duration_s=duration,
        requests=requests,
        repeat=repeat,
        arrivals=arrivals,
        cv=cv,
        independent=independent,
        max_tokens=max_tokens,
        seed=seed,
    )
    if describe_trace:
        _describe(trace or spec, options, as_json=as_json)
        return
    from twinpool.cluster.simulate.inputs import read_scenario_options
    from twinpool.cluster.simulate.job import Job

    scenario = read_scenario_options(
        policy=policy,
        gateways=gateways,
        hardware=hardware,
        tensor_parallel=tensor_parallel,
        kv_memory=kv_memory,
        noise=noise,
        seed=seed,
    )
    job = Job(
        spec_path=spec,
        trace_path=_given(trace),
        trace=options,
        scenario=scenario,
        latency_path=latency,
        latency_rows=latency_rows,
        faults=tuple(fault or ()),
        warmup_s=warmup,
        cooldown_s=cooldown,
        timeline_path=timeline,
        timeline_requests=timeline_requests,
        event_log_path=event_log,
        plot_folder=plot,
        skip_too_long=skip_too_long,
    )
    _perform(job, sweep, attainment, seeds, progress=progress, as_json=as_json)


def _given(trace: Path | None) -> Path:
    from twinpool.core.errors import SpecError

    if trace is None:
        raise SpecError("TRACE: is missing: a file of requests, after CLUSTER.yaml")
    return trace


def _perform(
    job: Any, sweep_text: str | None, attainment: float, num_seeds: int, *, progress: bool, as_json: bool
) -> None:
    """Run, tell and draw."""
    from twinpool.cluster.simulate.plots import check_library
    from twinpool.cluster.simulate.progress import RunProgress
    from twinpool.cluster.simulate.show import run_and_show, sweep_and_show
    from twinpool.cluster.simulate.sweep import parse_sweep

    if job.plot_folder is not None:
        check_library()
    with RunProgress(sys.stderr, is_wanted=progress) as bar:
        if sweep_text is None:
            run_and_show(job, bar, as_json=as_json)
        else:
            sweep_and_show(job, parse_sweep(sweep_text, attainment, num_seeds), bar, as_json=as_json)


def _describe(trace: Path, options: Any, *, as_json: bool) -> None:
    from twinpool.cluster.simulate.show import show_trace

    show_trace(trace, options, as_json=as_json)
