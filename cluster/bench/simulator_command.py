"""The command `twinpool bench simulator`; it imports what it runs when it is run, so that others start fast."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from twinpool.cluster.cli_options import JsonOption


class Workload(StrEnum):
    """What is run; docs/benchmarks.md says what each is for."""

    SPLITWISE = "splitwise"
    AZURE1000 = "azure1000"
    SCALING = "scaling"
    QUICK = "quick"


def simulator(
    workload: Annotated[Workload, typer.Option(help="what is run")] = Workload.QUICK,
    requests: Annotated[int | None, typer.Option(help="of each run; the workload's own", min=10)] = None,
    lengths: Annotated[
        Path | None, typer.Option(help="a trace to draw lengths from, each on its own", metavar="FILE")
    ] = None,
    perf_model: Annotated[
        Path | None, typer.Option(help="splitwise-sim's perf_model.csv; a roofline without it", metavar="FILE")
    ] = None,
    seed: Annotated[int, typer.Option(help="of arrivals and lengths", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Requests per second and memory of the simulator, each run in a process of its own."""
    from twinpool.cluster.bench.report import print_report
    from twinpool.cluster.bench.simulator import COLUMNS, bench_simulator

    rows = bench_simulator(workload, requests, _name(lengths), _name(perf_model), seed)
    print_report("bench simulator", rows, COLUMNS, as_json=as_json)


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)
