"""Where a cluster listens: workers and their links on ``transfer.interface`` alone, by the kernel's own table."""

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from tests.cluster.local_cluster import make_plan, running

pytestmark = pytest.mark.slow

LISTENING = "0A"
MAPPED = "0000000000000000FFFF0000"  # before an IPv4 address
INTERFACE = "127.0.0.3"  # not the address that this host's name has, and not the gateway's


def listening_addresses() -> set[str]:
    """Local addresses on which this process listens; IPv4 ones may stand in the table as IPv6 ones that map to them."""
    links = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    found = {row[1].partition(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes}
    return {_spelled(raw.removeprefix(MAPPED)) for raw in found}


def _spelled(raw: str) -> str:
    """An IPv4 address as people write it; another as the kernel does."""
    return socket.inet_ntoa(struct.pack("<I", int(raw, 16))) if len(raw) == 8 else raw


def test_nothing_of_a_worker_listens_beyond_its_interface_before_or_while_links_are_open() -> None:
    worker = {"link": "gloo", "interface": INTERFACE}

    async def scenario() -> None:
        async with running(make_plan(1, 1, worker=worker)) as cluster:
            assert listening_addresses() == {INTERFACE, "127.0.0.1"}  # the workers', and the gateway's for clients
            await cluster.client.generate([1, 2, 3], max_tokens=3)
            links = [link for each in cluster.workers.values() for link in each._endpoint.stats().links]
            assert {(link.kind, link.is_open) for link in links} == {("gloo", True)}
            assert listening_addresses() == {INTERFACE, "127.0.0.1"}
            await cluster.gateway.stop()
            assert listening_addresses() == {INTERFACE}

    before = listening_addresses()
    asyncio.run(scenario())
    assert listening_addresses() == before == set()
