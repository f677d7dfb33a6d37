"""Tenants and deadlines in virtual time: the simulated gateway lets in and refuses as the live one does."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.simulator.builders import GOAL, kind, scenario
from tests.simulator.cluster_worlds import assert_settled, draw_world, watch
from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import LatencyModel, LinearForm
from twinpool.router.fair_queue import FairSettings
from twinpool.router.route import PlacementSettings
from twinpool.router.tenants import TenantLimits
from twinpool.simulator.outcome import Ending
from twinpool.simulator.scenario import GoalClass
from twinpool.simulator.trace import TraceRequest


def test_a_tenant_over_its_rate_is_refused_and_another_is_not() -> None:
    limits = {"acme": TenantLimits(tokens_per_s=10, burst_tokens=120)}
    trace = [TraceRequest(float(at), 100, 20, tenant=name) for at in range(20) for name in ("acme", "b")]
    seen, _ = watch(scenario(admission=AdmissionSettings(tenants=limits)), trace)
    ended = Counter((one.offered.tenant, one.ending) for one in seen.outcomes.values())
    assert ended["b", Ending.COMPLETED] == 20
    assert 2 <= ended["acme", Ending.COMPLETED] <= 3  # 120 at once and 190 in 19 s, of 120 each
    assert ended["acme", Ending.REJECTED] == 20 - ended["acme", Ending.COMPLETED]
    assert all("tenant acme" in one.why for one in seen.outcomes.values() if one.ending is Ending.REJECTED)


def test_backlogged_tenants_get_by_weight() -> None:
    limits = {"a": TenantLimits(weight=1), "b": TenantLimits(weight=3)}
    trace = [TraceRequest(0.0, 100, 20, tenant=name) for name in "ab" for _ in range(40)]
    seen, _ = watch(scenario(admission=AdmissionSettings(tenants=limits), kind=kind(num_blocks=24)), trace)
    order = [one.offered.tenant for one in sorted(seen.outcomes.values(), key=lambda one: one.first_token_s or 0.0)]
    assert 25 <= order[:40].count("b") <= 35
    assert order.count("b") == 40


def test_a_deadline_that_no_worker_can_meet_is_refused_at_once_and_a_near_one_is_tried() -> None:
    slow = LinearForm(prefill_b_s=0.01)  # a second for 100 tokens
    goals = {"default": GoalClass(GOAL, deadline_s=0.5), "later": GoalClass(GOAL, deadline_s=2.0)}
    world = scenario(
        kind=kind(truth=slow), goals=goals, placement=PlacementSettings(latencies={"k": LatencyModel(slow)})
    )
    trace = [TraceRequest(0.0, 100, 2), TraceRequest(10.0, 100, 2, goal_class="later")]
    seen, _ = watch(world, trace)
    first, second = sorted(seen.outcomes.values(), key=lambda one: one.index)
    assert (first.ending, first.end_s) == (Ending.REJECTED, 0.0)
    assert "deadline" in first.why
    assert second.ending is Ending.COMPLETED


@pytest.mark.parametrize("seed", range(12))
def test_whatever_befalls_the_workers_each_request_ends_once_and_no_tenant_is_left_running(seed: int) -> None:
    limits = {"default": TenantLimits(max_running=3), "tenant": TenantLimits(tokens_per_s=500, max_running=2, weight=2)}
    fair = FairSettings(aging_s=5.0, max_overtaken=2, max_aside=1 + seed % 3)
    world, trace = draw_world(seed, is_crowded=bool(seed % 2))
    admission = AdmissionSettings(max_queued=40, fair=fair, tenants=limits)
    seen, cluster = watch(replace(world, admission=admission), trace)
    assert_settled(seen, cluster)
    counts = [one for gateway in cluster.gateways for one in gateway._waiting.tenants().values()]
    assert all((queued, told.running) == (0, 0) for queued, told in counts)
    assert sum(told.admitted for _, told in counts) + sum(told.refused for _, told in counts) >= len(trace)
