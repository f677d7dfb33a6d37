"""Back-pressure, damage and lost links, as an operator sees them: numbers in a cluster's status, and a line each."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.cluster.local_cluster import BLOCK_TOKENS, LocalCluster, make_plan, running
from twinpool.client.client import AsyncClient
from twinpool.client.results import TransferMetrics
from twinpool.cluster.show import print_status, status_as_dict, transfer_line
from twinpool.cluster.worker_view import LoadView
from twinpool.core.errors import Corrupted
from twinpool.core.sampling import SamplingParams
from twinpool.kv_transfer import metrics
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.model.kv_layout import KVCache
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_shape import modelled_shape

from .test_worker_view import IDLE

SHAPE = modelled_shape("modelled:instant")
PROMPT = list(range(20))
WAIT_S = 30.0


async def until(cluster: LocalCluster, worker_id: str, holds: Callable[[TransferMetrics], Any]) -> TransferMetrics:
    """What the status says of a worker's handoffs, as soon as it fits."""
    async with asyncio.timeout(WAIT_S):
        while True:
            workers = {worker.id: worker for worker in (await cluster.client.status()).workers}
            if holds(workers[worker_id].transfer):
                return workers[worker_id].transfer
            await asyncio.sleep(0.05)


def expected(prompt: list[int], max_tokens: int) -> tuple[int, ...]:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return tuple(oracle_tokens(SHAPE, prompt, params, max_tokens))


# --- A full decode pool -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_decode_pool_shows_in_the_sources_numbers_and_they_fall_when_it_empties() -> None:
    """Two gateways know nothing of each other's orders, so both place a sequence that fills the decode pool."""
    blocks, max_tokens, prompts = 26, 160, ([1] * 40, [2] * 40)
    small = {"model": "modelled:paced", "kv_bytes": blocks * BLOCK_TOKENS * SHAPE.kv_token_bytes, "max_model_len": 204}
    plan = make_plan(1, 1, worker=small | {"parked_share": 0.9})
    gateways = tuple(replace(plan.gateways[0], gateway_id=f"gateway-{number}") for number in range(2))

    async def scenario() -> None:
        async with running(replace(plan, gateways=gateways)) as cluster, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(AsyncClient([address])) for address in cluster.addresses]
            answers = asyncio.gather(
                *(
                    client.generate(prompt, max_tokens=max_tokens, temperature=0.0)
                    for client, prompt in zip(clients, prompts, strict=True)
                )
            )
            seen = await until(cluster, "prefill-0", lambda found: found.oldest_parked_s > 0.2)
            assert (seen.parked_handoffs, seen.parked_blocks) == (1, 5)
            assert seen.grant_waits >= 1
            assert seen.grant_wait_s >= seen.oldest_parked_s
            assert seen.grant_cause == "decode-0 has not granted blocks yet"
            assert (await until(cluster, "decode-0", lambda found: found.room_waiting)).parked_handoffs == 0
            for prompt, answer in zip(prompts, await answers, strict=True):
                assert answer.token_ids == expected(prompt, max_tokens)
            after = await until(cluster, "prefill-0", lambda found: found.outgoing.get("committed") == 2)
            assert (after.parked_handoffs, after.parked_blocks, after.oldest_parked_s) == (0, 0, 0.0)
            assert (after.grant_cause, after.oldest_lease_s) == ("", 0.0)
            assert after.grant_waits >= seen.grant_waits  # of all time
            found = await until(cluster, "decode-0", lambda found: found.incoming.get("committed") == 2)
            assert found.room_waiting == 0
            await cluster.assert_idle()

    asyncio.run(scenario())


# --- Damage -----------------------------------------------------------------------------------------------------------


def over(network: MemoryNetwork) -> Callable[[KVCache], MemoryLinks]:
    return lambda cache: MemoryLinks(network, cache)


def test_kv_that_is_damaged_once_is_computed_again_and_the_answer_is_right() -> None:
    network = MemoryNetwork()
    network.inject(Fault.CORRUPT)

    async def scenario() -> None:
        async with running(make_plan(1, 1), over(network)) as cluster:
            answer = await cluster.client.generate(PROMPT, max_tokens=6, temperature=0.0)
            assert answer.token_ids == expected(PROMPT, 6)
            found = await until(cluster, "decode-0", lambda found: found.incoming.get("committed"))
            assert (found.digest_failures, dict(found.incoming)) == (1, {"committed": 1, "corrupted": 1})
            found = await until(cluster, "prefill-0", lambda found: found.outgoing.get("committed"))
            assert dict(found.outgoing) == {"committed": 1, "corrupted": 1}
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_kv_that_is_damaged_again_is_a_clean_error_and_both_workers_serve_the_next_request() -> None:
    network = MemoryNetwork()
    for group in range(100):
        network.inject(Fault.CORRUPT, after=group)

    async def scenario() -> None:
        async with running(make_plan(1, 1), over(network)) as cluster:
            tokens: list[int] = []
            with pytest.raises(Corrupted, match="again after it was recomputed"):
                async for event in cluster.client.stream(PROMPT, max_tokens=6, temperature=0.0):
                    tokens += event.token_ids
            assert tuple(tokens) == expected(PROMPT, 6)[: len(tokens)]
            assert len(tokens) <= 2  # one of each prefill; none came of KV that was not verified
            await cluster.assert_idle()
            for group in range(100):
                network._faults.pop(network._num_sent + group, None)
            answer = await cluster.client.generate(PROMPT, max_tokens=6, temperature=0.0)
            assert answer.token_ids == expected(PROMPT, 6)
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_a_link_that_is_opened_again_is_counted() -> None:
    network = MemoryNetwork(timeout_s=0.2)
    network.inject(Fault.DROP)

    async def scenario() -> None:
        async with running(make_plan(1, 1), over(network)) as cluster:
            answer = await cluster.client.generate(PROMPT, max_tokens=6, temperature=0.0)
            assert answer.token_ids == expected(PROMPT, 6)
            assert (await until(cluster, "prefill-0", lambda found: found.link_reopenings)).link_reopenings == 1

    asyncio.run(scenario())


# --- How they travel and look -----------------------------------------------------------------------------------------


def test_metrics_change_a_view_under_its_version_and_stay_in_the_next() -> None:
    view = LoadView()
    assert not view.note_transfer(metrics.TransferMetrics(parked_handoffs=1))  # nobody knows of a load yet
    view.update(IDLE)
    waiting = metrics.TransferMetrics(parked_handoffs=2, grant_cause="d is full", outgoing={"committed": 3})
    version = view.view.version
    assert view.note_transfer(waiting)
    assert not view.note_transfer(waiting)
    assert view.view.version == version
    view.update(IDLE)
    assert view.view.version == version + 1
    assert view.view.transfer.grant_cause == "d is full"
    assert dict(view.view.transfer.outgoing) == {"committed": 3}


def test_a_line_tells_only_what_is_not_zero() -> None:
    calm: dict[str, Any] = {
        name: getattr(TransferMetrics(outgoing={"committed": 7}), name) for name in TransferMetrics.__slots__
    }
    assert transfer_line(calm) == ""
    parked = {"parked_handoffs": 2, "parked_blocks": 9, "oldest_parked_s": 1.25, "grant_cause": "d0 is full"}
    assert transfer_line(calm | parked) == "2 handoffs parked (9 blocks, for 1.2 s: d0 is full)"
    wrong = {"outgoing": {"committed": 7, "corrupted": 1, "lapsed": 2}, "digest_failures": 1}
    assert transfer_line(calm | wrong) == "3 handoffs not committed; 1 groups came damaged"


def test_status_has_every_number_and_the_table_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> dict[str, Any]:
        async with running(make_plan(1, 1)) as cluster:
            await cluster.client.generate(PROMPT, max_tokens=3)
            await until(cluster, "prefill-0", lambda found: found.outgoing)
            return status_as_dict(await cluster.client.status())

    status = asyncio.run(scenario())
    source = next(worker for worker in status["workers"] if worker["id"] == "prefill-0")
    assert source["transfer"]["outgoing"] == {"committed": 1}
    assert set(source["transfer"]) == set(metrics.TransferMetrics.__slots__)
    print_status(status)
    assert "not committed" not in capsys.readouterr().out
    source["transfer"]["link_reopenings"] = 2
    print_status(status)
    assert "prefill-0: 2 links opened again" in capsys.readouterr().out
