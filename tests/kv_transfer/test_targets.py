"""What a target remembers of handoffs that are over."""

import asyncio

import pytest

from twinpool.kv_transfer.handoff import Limits

from .fake_workers import FakeCluster, Handoff, running

pytestmark = pytest.mark.slow  # real waits
LEASE_S = 0.05
LIMITS = Limits(lease_s=LEASE_S, announce_s=30.0)


def test_a_late_source_is_refused_though_the_lease_of_the_handoff_would_have_ended_since() -> None:
    async def scenario() -> None:
        async with asyncio.timeout(20), running(FakeCluster(limits=LIMITS, heartbeat_s=LEASE_S / 5)) as cluster:
            handoff = Handoff(cluster.add("p"), cluster.add("d"))
            handoff.reserve()
            handoff.target.endpoint.cancel("r", 1, "a test")
            await asyncio.sleep(3 * LEASE_S)
            handoff.begin()
            handoff.compute(0, 6)
            handoff.finish()
            _, _, _, reason = await handoff.source.engine.until("parked", "r", 1)
            assert "given this epoch up" in str(reason)

    asyncio.run(scenario())
