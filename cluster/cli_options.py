"""Options that several commands of `twinpool` share. The only place that knows the environment.

Knows how a user names a cluster; runs no command.
"""

import os
from typing import Annotated

import typer

from twinpool.cluster.state import StateFolder, default_folder
from twinpool.core.limits import Name


def _host_and_port(value: str | None) -> str | None:
    if value is not None:
        host, _, port = value.rpartition(":")
        if not host or "/" in value or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise typer.BadParameter(f"must be HOST:PORT, not {value!r}")
    return value


def _name(value: str | None) -> str | None:
    why = None if value is None else Name().refusal(value)
    if why is not None:
        raise typer.BadParameter(why)
    return value


AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        callback=_host_and_port,
        help="HOST:PORT of a gateway, for a cluster that this machine did not start",
    ),
]
TenantOption = Annotated[
    str | None,
    typer.Option(
        callback=_name, help="whose limits and prefix cache are used; nobody checks who you are", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def addresses(name: str | None, address: str | None) -> list[str]:
    """Where a running cluster's gateways are."""
    if name is not None and address is not None:
        raise typer.BadParameter("name a cluster or an address, not both")
    return [address] if address else list(folder().find(name).grpc)


def folder() -> StateFolder:
    """Where this user's clusters are remembered."""
    return StateFolder(default_folder(os.environ))


def silence_grpc() -> None:
    """Keep gRPC from writing a line for each connection whose server ends first; before its first import."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
