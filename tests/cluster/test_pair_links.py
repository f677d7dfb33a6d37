"""A cluster's status says of every pair of workers which link KV goes over, and why."""

import asyncio
from dataclasses import replace

import pytest

from tests.cluster.local_cluster import LocalCluster, make_plan, running
from twinpool.client.results import PairLink
from twinpool.cluster.outbox import Outbox
from twinpool.cluster.pair_links import MAX_WHY, links_to_proto
from twinpool.cluster.show import link_lines, print_status, status_as_dict
from twinpool.kv_transfer.endpoint import LinkStats
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import MemoryNetwork

WAIT_S = 30.0
STATS = LinkStats("decode-0", True, True, "shm", "auto: both workers are on one host", 1, 0, 0)


async def links_of(cluster: LocalCluster, worker_id: str) -> tuple[PairLink, ...]:
    """What the status says of a worker's links, as soon as it says anything."""
    async with asyncio.timeout(WAIT_S):
        while True:
            workers = {worker.id: worker for worker in (await cluster.client.status()).workers}
            if workers[worker_id].links:
                return workers[worker_id].links
            await asyncio.sleep(0.05)


def test_status_names_the_link_of_each_pair_and_why_it_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    network = MemoryNetwork()

    async def scenario() -> None:
        async with running(make_plan(1, 1), lambda cache: MemoryLinks(network, cache, why="a test")) as cluster:
            assert all(worker.links == () for worker in (await cluster.client.status()).workers)
            await cluster.client.generate([1] * 20, max_tokens=3)
            (link,) = await links_of(cluster, "prefill-0")
            assert (link.target, link.kind, link.is_open, bool(link.why)) == ("decode-0", "memory", True, True)
            print_status(status_as_dict(await cluster.client.status()))

    asyncio.run(scenario())
    assert "prefill-0: to decode-0 over memory (" in capsys.readouterr().out


def test_only_links_to_targets_that_were_chosen_or_refused_are_told_in_order() -> None:
    refused = replace(STATS, peer="decode-1", kind="", why="auto: " + "x" * 500, is_open=False)
    unopened = replace(STATS, peer="decode-2", kind="", why="")
    incoming = replace(STATS, peer="prefill-1", is_outgoing=False)
    told = links_to_proto([refused, STATS, unopened, incoming]).links
    assert [(link.target, link.kind, link.is_open) for link in told] == [
        ("decode-0", "shm", True),
        ("decode-1", "", False),
    ]
    assert len(told[1].why) == MAX_WHY


def test_targets_of_one_kind_for_one_reason_share_a_line() -> None:
    links = [{"target": f"d{n}", "kind": "gloo", "why": "auto: both have it", "is_open": True} for n in range(2)]
    other = {"target": "d2", "kind": "", "why": "auto: no kind of link", "is_open": False}
    assert link_lines([*links, other]) == [
        "to d0, d1 over gloo (auto: both have it)",
        "to d2 over nothing (auto: no kind of link)",
    ]


def test_links_go_out_once_and_not_with_every_step() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        outbox.set_links(links_to_proto([STATS]))
        assert (await outbox.take()).links.links[0].kind == "shm"
        outbox.set_links(links_to_proto([]))
        cleared = await outbox.take()
        assert cleared.HasField("links")
        assert not cleared.links.links
        assert not outbox._pending.HasField("links")

    asyncio.run(scenario())
