"""Counters of waits and outcomes, and what endpoints make of them."""

import asyncio

import pytest

from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.metrics import Outcomes, Waits

from .fake_workers import QUICK, FakeCluster, Handoff, eventually, in_loop, running


def test_waits_count_once_each_and_last_until_they_end() -> None:
    waits = Waits()
    waits.note("a", True, 1.0)
    waits.note("b", True, 2.0)
    waits.note("a", True, 3.0)  # said again
    assert (waits.num_waits, waits.total_s(4.0), waits.oldest_s(4.0)) == (2, 5.0, 3.0)
    waits.note("a", False, 5.0)
    waits.note("a", False, 6.0)
    assert (waits.num_waits, waits.total_s(6.0), waits.oldest_s(6.0)) == (2, 8.0, 4.0)
    waits.note("b", False, 6.0)
    assert (waits.total_s(99.0), waits.oldest_s(99.0)) == (8.0, 0.0)
    waits.note("a", True, 100.0)
    assert waits.num_waits == 3


def test_outcomes_that_were_told_do_not_change_later() -> None:
    outcomes = Outcomes()
    outcomes.add("committed")
    told = outcomes.counts()
    outcomes.add("committed")
    assert (dict(told), dict(outcomes.counts())) == ({"committed": 1}, {"committed": 2})


@pytest.mark.slow
@in_loop
async def test_a_full_window_is_a_wait_for_credit_until_a_group_has_left() -> None:
    async with running(FakeCluster(network=MemoryNetwork())) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d", window=2))
        source = handoff.source.endpoint
        cluster.network.inject(Fault.DELAY)
        handoff.reserve()
        handoff.begin()
        handoff.compute(0, 1)
        await handoff.source.engine.until("granted")
        assert source.metrics().credit_waits == 0
        for block in range(1, 6):
            handoff.compute(block, block + 1)
        await asyncio.sleep(0.05)
        waiting = source.metrics()
        assert waiting.credit_waits == 1
        assert waiting.credit_wait_s > 0.04
        assert waiting.grant_waits == waiting.parked_handoffs == 0  # it moves
        handoff.finish()
        cluster.network.release()
        await handoff.until_over()
        after = source.metrics()
        assert after.credit_wait_s >= waiting.credit_wait_s
        assert dict(after.outgoing) == {"committed": 1}
        assert after.credit_wait_s == source.metrics().credit_wait_s


@pytest.mark.slow
@in_loop
async def test_kv_without_a_grant_is_parked_and_says_for_whom_it_waits_and_how_it_ended() -> None:
    async with running(FakeCluster()) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        source = handoff.source.endpoint
        handoff.begin()
        handoff.compute(0, 6)
        assert source.metrics().parked_handoffs == 0
        handoff.finish()
        assert "d has not" in source.metrics().grant_cause
        await eventually(lambda: source.metrics().grant_cause == "d has not granted blocks yet")
        parked = source.metrics()
        assert (parked.parked_handoffs, parked.parked_blocks, parked.grant_waits) == (1, 6, 1)
        assert parked.oldest_parked_s > 0
        source.demote("r", 1, "room")
        await handoff.source.engine.until("release_source")
        after = source.metrics()
        assert (after.parked_handoffs, after.parked_blocks, after.grant_cause) == (0, 0, "")
        assert dict(after.outgoing) == {str(FailureKind.PREEMPTED): 1}


@pytest.mark.slow
@in_loop
async def test_the_age_of_a_lease_grows_while_the_peer_is_silent_and_ends_with_the_handoff() -> None:
    async with running(FakeCluster(limits=QUICK, heartbeat_s=100.0)) as cluster:
        handoff = Handoff(cluster.add("p"), cluster.add("d"))
        handoff.target.endpoint.reserve("r", 1, 22, handoff.source.address)
        ages = []
        for _ in range(3):
            ages.append(handoff.target.endpoint.metrics().oldest_lease_s)
            await asyncio.sleep(0.02)
        assert 0 <= ages[0] < ages[1] < ages[2]
        await handoff.target.engine.until("failed", "r", 1, FailureKind.PEER_LOST)
        found = handoff.target.endpoint.metrics()
        assert (found.oldest_lease_s, dict(found.incoming)) == (0.0, {str(FailureKind.PEER_LOST): 1})


@pytest.mark.slow
@in_loop
async def test_cancelled_and_unclaimed_handoffs_are_told_apart() -> None:
    async with running(FakeCluster(limits=QUICK)) as cluster:
        source, target = cluster.add("p"), cluster.add("d")
        cancelled, lapsed = Handoff(source, target, "cancelled"), Handoff(source, target, "lapsed")
        for handoff in (cancelled, lapsed):
            handoff.begin()
        source.endpoint.cancel("cancelled", 1, "a test")
        await source.engine.until("release_source", "lapsed")
        assert dict(source.endpoint.metrics().outgoing) == {"cancelled": 1, "lapsed": 1}
