"""The `twinpool` command. Each command imports what it needs.

Exit codes: 0 ok, 1 failed, 2 bad input, which is told in one line for each problem.
"""

import io
import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from twinpool import __version__
from twinpool.cluster.batch import commands as batch
from twinpool.cluster.bench import commands as bench
from twinpool.cluster.cli_generate import generate
from twinpool.cluster.cli_options import AddressOption, JsonOption, silence_grpc
from twinpool.cluster.cli_options import addresses as _addresses
from twinpool.cluster.cli_options import folder as _folder
from twinpool.cluster.json_text import json_text
from twinpool.cluster.simulate.command import simulate
from twinpool.cluster.state import ClusterState
from twinpool.core.errors import InvalidRequest, ModelNotFound, SpecError, TwinpoolError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SpecArgument = Annotated[Path, typer.Argument(help="the cluster's YAML file", metavar="CLUSTER.yaml")]
NameArgument = Annotated[str | None, typer.Argument(help="the cluster's name; by default the only one that is up")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twinpool {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Serve large language models with prefill and decode on separate pools of workers."""


@app.command()
def up(
    spec: SpecArgument,
    detach: Annotated[bool, typer.Option("--detach", help="return once the cluster serves")] = False,
) -> None:
    """Start the cluster that a YAML file describes."""
    from twinpool.cluster.up import run_detached, run_in_foreground

    if detach:
        _tell_ready(run_detached(spec, _folder()))
    else:
        run_in_foreground(spec, _folder(), _tell_ready)


def _tell_ready(state: ClusterState) -> None:
    typer.echo(f"{state.name} serves gRPC at {', '.join(state.grpc)} (supervisor {state.supervisor_pid})")


@app.command()
def down(name: NameArgument = None) -> None:
    """End a cluster, and only that: other Ray clusters on the machine are left alone."""
    from twinpool.cluster.up import take_down

    state = _folder().find(name)
    take_down(state, _folder())
    typer.echo(f"{state.name} is down")


@app.command()
def status(name: NameArgument = None, as_json: JsonOption = False, address: AddressOption = None) -> None:
    """Show a cluster's workers and gateways."""
    from twinpool.client.client import Client
    from twinpool.cluster.show import print_status, status_as_dict

    with Client(_addresses(name, address)) as client:
        answer = status_as_dict(client.status())
    if as_json:
        typer.echo(json_text(answer))
    else:
        print_status(answer)


@app.command()
def check(spec: SpecArgument) -> None:
    """Check a YAML file and the model that it names, without starting anything."""
    from twinpool.cluster.launch import plan_launch

    plan = plan_launch(spec)
    typer.echo(f"{spec}: ok: {_counted(len(plan.workers), 'worker')}, {_counted(len(plan.gateways), 'gateway')}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@app.command()
def schema() -> None:
    """Print the JSON Schema of the cluster YAML."""
    from twinpool.core.spec import cluster_schema

    typer.echo(json.dumps(cluster_schema(), indent=2))


@app.command()
def demo() -> None:
    """Bring a small cluster up, stream completions through separate prefill and decode workers, and show the times."""
    from twinpool.cluster.demo import run_demo

    run_demo(_folder())


@app.command()
def profile(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option(help="the profile file to write", metavar="FILE")],
    quick: Annotated[bool, typer.Option("--quick", help="a smaller grid: under 20 s for the demo model")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how long steps, handoffs and messages of a cluster's workers take, without bringing the cluster up."""
    silence_grpc()
    from twinpool.cluster.profile.command import run_profile

    run_profile(spec, out, quick=quick, as_json=as_json)


app.command()(generate)
app.command()(simulate)
app.add_typer(batch.app, name="batch")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run a command; a problem of ours is told without a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what a command started is taken down again
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model may write what the terminal cannot
    try:
        app()
    except OSError as error:  # the output's end is gone or full
        sys.stderr.write(f"twinpool: {error.strerror or error}\n")
        sys.exit(1)
    except TwinpoolError as error:
        sys.stderr.write(f"twinpool: {error}\n")
        sys.exit(2 if isinstance(error, SpecError | InvalidRequest | ModelNotFound) else 1)


if __name__ == "__main__":
    main()
