"""The `twinpool` command. The only place that reads the environment; each command imports what it needs.

Exit codes: 0 ok, 1 failed, 2 bad input, which is told in one line for each problem.
"""

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from twinpool.cluster.state import ClusterState, StateFolder, default_folder
from twinpool.core.errors import InvalidRequest, ModelNotFound, SpecError, TwinpoolError

app = typer.Typer(
    help="Serve large language models with prefill and decode on separate pools of workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SpecArgument = Annotated[Path, typer.Argument(help="the cluster's YAML file", metavar="CLUSTER.yaml")]
NameArgument = Annotated[str | None, typer.Argument(help="the cluster's name; by default the only one that is up")]


def _host_and_port(value: str | None) -> str | None:
    if value is not None:
        host, _, port = value.rpartition(":")
        if not host or "/" in value or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise typer.BadParameter(f"must be HOST:PORT, not {value!r}")
    return value


AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        callback=_host_and_port,
        help="HOST:PORT of a gateway, for a cluster that this machine did not start",
    ),
]
NameOption = Annotated[str | None, typer.Option("--name", help="the cluster's name; by default the only one up")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def _addresses(name: str | None, address: str | None) -> list[str]:
    """Where a running cluster's gateways are."""
    if name is not None and address is not None:
        raise typer.BadParameter("name a cluster or an address, not both")
    return [address] if address else list(_folder().find(name).grpc)


def _folder() -> StateFolder:
    return StateFolder(default_folder(os.environ))


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
        typer.echo(json.dumps(answer))
    else:
        print_status(answer)


@app.command()
def check(spec: SpecArgument) -> None:
    """Check a YAML file and the model that it names, without starting anything."""
    from twinpool.cluster.launch import plan_launch

    plan = plan_launch(spec)
    typer.echo(f"{spec}: ok: {len(plan.workers)} workers, {len(plan.gateways)} gateways")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the cluster YAML."""
    from twinpool.core.spec import cluster_schema

    typer.echo(json.dumps(cluster_schema(), indent=2))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    max_tokens: Annotated[int, typer.Option(help="most tokens to generate")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 switches it off")] = 0,
    top_p: Annotated[float, typer.Option(help="1 switches it off")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="makes sampling repeatable")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="send the prompt as a user's chat message")] = False,
    name: NameOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stream a completion from a running cluster."""
    from twinpool.client.client import Client
    from twinpool.cluster.show import result_as_dict

    sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    if seed is not None:
        sampling["seed"] = seed
    content: Any = [{"role": "user", "content": prompt}] if chat else prompt
    with Client(_addresses(name, address)) as client, client.stream(content, **sampling) as stream:
        for event in stream:
            if not as_json:
                sys.stdout.write(event.text)
                sys.stdout.flush()
        typer.echo(json.dumps(result_as_dict(stream.result)) if as_json else "")


@app.command()
def demo() -> None:
    """Bring a small cluster up, stream completions through separate prefill and decode workers, and show the times."""
    from twinpool.cluster.demo import run_demo

    run_demo(_folder())


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
