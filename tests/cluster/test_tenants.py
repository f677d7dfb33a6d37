"""Tenants of a whole cluster: limits, standing and caches, from the YAML's words to what clients and operators see."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.cluster.local_cluster import BLOCK_TOKENS, LocalCluster, make_plan, running
from twinpool.client.client import AsyncClient
from twinpool.cluster.launch import plan_launch
from twinpool.cluster.show import print_status, status_as_dict
from twinpool.core.errors import DeadlineExceeded, InvalidRequest, Overloaded
from twinpool.router.standing import Standing
from twinpool.router.tenants import TenantLimits

PROMPT = list(range(1, 4 * BLOCK_TOKENS + 1))
LIMITS = {"default": TenantLimits(), "acme": TenantLimits(tokens_per_s=1, burst_tokens=40)}


def run(scenario) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(asyncio.wait_for(scenario, 60))


def of(cluster: LocalCluster, tenant: str | None) -> AsyncClient:
    return AsyncClient(cluster.addresses, tenant=tenant)


def test_a_tenant_over_its_rate_is_told_when_to_come_back_and_another_one_is_not_disturbed() -> None:
    async def scenario() -> None:
        async with running(make_plan(tenants=LIMITS)) as cluster, of(cluster, "acme") as acme, of(cluster, "b") as b:
            await acme.generate(PROMPT, max_tokens=10)  # 32 of the prompt and 10 of the answer: 2 more than the burst
            with pytest.raises(Overloaded, match="tenant acme is over its tokens_per_s, 1") as caught:
                await acme.generate(PROMPT, max_tokens=10)
            assert 30 < caught.value.retry_after_s <= 34
            assert caught.value.tenant == "acme"
            for _ in range(3):
                await b.generate(PROMPT, max_tokens=10)
            await cluster.client.generate(PROMPT, max_tokens=10)
            status = await b.status()
            told = {tenant.name: tenant for tenant in status.tenants}
            assert {name: (one.admitted, one.refused) for name, one in told.items()} == {
                "acme": (1, 1),
                "b": (3, 0),
                "default": (1, 0),
            }
            assert (told["b"].prompt_tokens, told["b"].output_tokens) == (96, 30)
            assert all((one.queued, one.running) == (0, 0) for one in told.values())
            await cluster.assert_idle()

    run(scenario())


def test_more_than_may_run_wait_and_all_are_answered() -> None:
    async def scenario() -> None:
        plan = make_plan(tenants={"acme": TenantLimits(max_running=1)})
        async with running(plan) as cluster, of(cluster, "acme") as acme:
            results = await asyncio.gather(*(acme.generate(PROMPT, max_tokens=20, seed=1) for _ in range(5)))
            assert len({result.token_ids for result in results}) == 1
            await cluster.assert_idle()

    run(scenario())


def test_tenants_share_no_prefix_cache_and_default_is_who_names_none() -> None:
    async def scenario() -> None:
        async with running(make_plan(prefill=0, decode=0, mixed=1)) as cluster:
            cached = []
            for tenant in ("acme", "other", "acme", None, "default"):
                async with of(cluster, tenant) as client:
                    result = await client.generate(PROMPT, max_tokens=2)
                    cached.append(result.usage.cached_tokens > 0)
            assert cached == [False, False, True, False, True]

    run(scenario())


def test_a_deadline_of_the_class_holds_for_requests_of_it() -> None:
    async def scenario() -> None:
        plan = make_plan(standings={"batch": Standing(deadline_s=0.0)})
        async with running(plan) as cluster:
            await cluster.client.generate(PROMPT, max_tokens=2)
            with pytest.raises(DeadlineExceeded):
                await cluster.client.generate(PROMPT, max_tokens=2, goal_class="batch")

    run(scenario())


@pytest.mark.parametrize("tenant", ["", "Acme", "a b", "x" * 41, "a\n", 5])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(tenant: object) -> None:
    with pytest.raises(InvalidRequest, match="tenant: must be 1 to 40 lower-case letters"):
        AsyncClient("127.0.0.1:1", tenant=tenant)  # type: ignore[arg-type]


def test_the_request_log_says_whose_each_request_was_also_of_those_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    async def scenario() -> None:
        plan = make_plan(tenants=LIMITS, request_log=str(path))
        async with running(plan) as cluster, of(cluster, "acme") as acme:
            await cluster.client.generate(PROMPT, max_tokens=2)
            await acme.generate(PROMPT, max_tokens=10)
            with pytest.raises(Overloaded):
                await acme.generate(PROMPT, max_tokens=10)

    run(scenario())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = [(line["tenant"], line["ending"]) for line in lines]
    assert told == [("", "completed"), ("acme", "completed"), ("acme", "rejected")]


def test_the_status_shows_tenants_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with running(make_plan()) as cluster, of(cluster, "acme") as acme:
            await cluster.client.generate(PROMPT, max_tokens=2)
            assert (await acme.status()).tenants == ()
            await acme.generate(PROMPT, max_tokens=2)
            values = status_as_dict(await acme.status())
            assert [tenant["name"] for tenant in values["tenants"]] == ["acme", "default"]
            print_status(values)

    run(scenario())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["acme", "0", "0", "1", "0", "32", "2"] in rows


def test_what_the_yaml_says_of_classes_and_tenants_reaches_every_gateway(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        """
name: tenants
model: {path: "modelled:instant"}
pools: {mixed: {workers: 1}}
router: {aging_s: 7}
goals: {batch: {ttft_s: 60, tpot_s: 1, priority: low, on_miss: best_effort, deadline_s: 120}}
tenants: {acme: {tokens_per_s: 5, max_running: 3, weight: 2}}
gateway: {replicas: 2}
"""
    )
    for gateway in plan_launch(path).gateways:
        assert gateway.standings == {"default": Standing(), "batch": Standing(deadline_s=120)}
        assert gateway.tenants == {
            "default": TenantLimits(queue_share=0.5),
            "acme": TenantLimits(tokens_per_s=5, max_running=3, weight=2, queue_share=0.5),
        }
        assert gateway.aging_s == 7
