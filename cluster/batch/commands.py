"""The commands of `twinpool batch`. Each imports what it needs when it is run, so that others start fast."""

from pathlib import Path
from typing import Annotated

import typer

from twinpool.cluster.cli_options import AddressOption, JsonOption, TenantOption, folder

app = typer.Typer(help="Answer a file of requests, and go on where an earlier run ended.", no_args_is_help=True)

InputArgument = Annotated[Path, typer.Argument(metavar="IN.jsonl", help="requests, as OpenAI's batches have them")]
OutputArgument = Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="answers; an output begun is continued")]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME|FILE",
        help="a cluster that is up, or a YAML file of one to bring up for this batch; by default the only one up",
    ),
]
ConcurrencyOption = Annotated[int, typer.Option(help="requests at once", min=1, max=4096)]
GoalClassOption = Annotated[
    str | None, typer.Option(help="a name under `goals:`; by default batch if there is one", show_default=False)
]
PatienceOption = Annotated[
    float, typer.Option(help="seconds to wait for a cluster that is away or full", min=0, max=86_400)
]
SecondsOption = Annotated[float, typer.Option(help="most seconds of one request", min=1, max=86_400)]


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise typer.BadParameter(f"must be the URL of Ray's dashboard, http://HOST:8265, not {value!r}")
    return value


RayAddressOption = Annotated[str, typer.Option(callback=_url, help="of Ray's dashboard: http://HOST:8265")]


def _one_of(cluster: str | None, address: str | None) -> None:
    if cluster is not None and address is not None:
        raise typer.BadParameter("name a cluster or an address, not both")


@app.command()
def run(
    input_path: InputArgument,
    output_path: OutputArgument,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    concurrency: ConcurrencyOption = 64,
    goal_class: GoalClassOption = None,
    tenant: TenantOption = None,
    patience_s: PatienceOption = 300.0,
    timeout_s: SecondsOption = 3600.0,
    as_json: JsonOption = False,
) -> None:
    """Answer every request that OUT.jsonl does not answer yet.

    Exit codes: 0 all are answered, 1 some have an error instead or are left, 2 bad input.
    """
    from twinpool.client.timeout import Timeout
    from twinpool.cluster.batch.attach import Where
    from twinpool.cluster.batch.command import run_batch
    from twinpool.cluster.batch.run import RunSettings

    _one_of(cluster, address)
    first_s, between_s = min(900.0, timeout_s), min(120.0, timeout_s)
    timeout = Timeout(first_token_s=first_s, between_tokens_s=between_s, total_s=timeout_s)
    settings = RunSettings(concurrency, goal_class, patience_s, timeout, tenant)
    where = Where(cluster, address)
    raise typer.Exit(run_batch(input_path, output_path, where, settings, folder(), as_json=as_json))


@app.command()
def submit(
    input_path: InputArgument,
    output_path: OutputArgument,
    ray_address: RayAddressOption,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    concurrency: ConcurrencyOption = 64,
    goal_class: GoalClassOption = None,
    tenant: TenantOption = None,
    python: Annotated[str, typer.Option(help="the Python that runs the job, on Ray's head node")] = "python",
    follow: Annotated[bool, typer.Option("--follow", help="show the job's log, and end as the job ends")] = False,
) -> None:
    """Run the batch as a Ray job. All paths must be the same on Ray's head node, which runs it."""
    from twinpool.cluster.batch.attach import Where
    from twinpool.cluster.batch.submit import job_entrypoint, submit_batch

    _one_of(cluster, address)
    spec_path = Where(cluster, address).spec_path
    target = cluster if spec_path is None else str(spec_path.absolute())
    options = {
        "--cluster": target,
        "--address": address,
        "--goal-class": goal_class,
        "--tenant": tenant,
        "--concurrency": str(concurrency),
    }
    flags = [part for name, value in options.items() if value is not None for part in (name, value)]
    entrypoint = job_entrypoint(python, input_path, output_path, flags)
    raise typer.Exit(submit_batch(ray_address, entrypoint, follow=follow))
