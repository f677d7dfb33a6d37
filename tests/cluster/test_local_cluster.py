"""A cluster end to end in one process: what clients see, what workers keep, and what fails cleanly."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.cluster.local_cluster import SECRET, LocalCluster, make_plan, running
from twinpool.client.client import AsyncClient
from twinpool.client.errors import error_from_rpc
from twinpool.client.results import GenerationResult
from twinpool.core.errors import Cancelled, InvalidRequest, ModelNotFound, Overloaded
from twinpool.core.messages import FinishReason
from twinpool.core.sampling import SamplingParams
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_shape import modelled_shape
from twinpool.protos.twinpool.v1 import generation_pb2, generation_pb2_grpc, worker_pb2, worker_pb2_grpc

pytestmark = pytest.mark.slow  # real sockets and real waits

SHAPE = modelled_shape("modelled:instant")
Requests = list[tuple[list[int], dict[str, Any]]]


def expected(prompt: list[int], **sampling: Any) -> tuple[int, ...]:
    params = SamplingParams(**sampling)
    return tuple(oracle_tokens(SHAPE, prompt, params, params.max_tokens))


def some_requests(count: int, seed: int = 0) -> Requests:
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        start = rng.randrange(4)  # some begin alike
        prompt = list(range(start, start + rng.randint(1, 200)))
        sampling = {"max_tokens": rng.randint(1, 40), "temperature": float(number % 2), "seed": number}
        requests.append((prompt, sampling))
    return requests


async def generate_all(
    cluster: LocalCluster, requests: list[tuple[list[int], dict[str, Any]]]
) -> list[GenerationResult]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cluster.client.generate(prompt, **sampling)) for prompt, sampling in requests]
    return [task.result() for task in tasks]


@pytest.mark.parametrize(
    "pools",
    [
        {"prefill": 2, "decode": 2},
        {"prefill": 2, "decode": 2, "policy": "round_robin"},
        {"prefill": 1, "decode": 2, "policy": "least_loaded"},
        {"prefill": 0, "decode": 0, "mixed": 2},
        {"prefill": 1, "decode": 1, "mixed": 1, "disaggregate": "when_cheaper"},
        {"prefill": 1, "decode": 1, "disaggregate": "never"},
    ],
    ids=str,
)
def test_every_placement_gives_the_same_tokens(pools: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with running(make_plan(**pools)) as cluster:
            requests = some_requests(24)
            results = await generate_all(cluster, requests)
            for (prompt, sampling), result in zip(requests, results, strict=True):
                assert result.token_ids == expected(prompt, **sampling)
                assert result.finish_reason is FinishReason.LENGTH
                assert result.usage.prompt_tokens == len(prompt)
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_disaggregated_requests_move_kv_and_say_where_they_ran() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            result = await cluster.client.generate(list(range(100)), max_tokens=10, temperature=0.0)
            timings = result.timings
            assert (timings.prefill_worker, timings.decode_worker) == ("prefill-0", "decode-0")
            assert timings.kv_bytes == -(-100 // 8) * 8 * SHAPE.kv_token_bytes
            assert timings.attempts == 1
            assert timings.ttft_s > 0
            assert 0 <= timings.exposed_s <= timings.wire_s
            again = await cluster.client.generate(list(range(100)), max_tokens=10, temperature=0.0)
            assert again.token_ids == result.token_ids
            assert again.timings.kv_bytes < timings.kv_bytes  # the decode worker kept the full blocks
            assert again.usage.cached_tokens == 96

    asyncio.run(scenario())


def test_kv_leaves_while_the_prompt_is_still_computed() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1, worker={"model": "modelled:paced"})) as cluster:
            await cluster.client.generate([1, 2, 3], max_tokens=2, temperature=0.0)  # opens the link
            result = await cluster.client.generate(list(range(400)), max_tokens=2, temperature=0.0)
            assert result.timings.kv_bytes == 400 * SHAPE.kv_token_bytes
            assert result.timings.exposed_s < result.timings.wire_s  # 7 chunks, all but the last hidden

    asyncio.run(scenario())


def test_a_single_token_never_reserves_a_decode_worker() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            result = await cluster.client.generate([1, 2, 3], max_tokens=1, temperature=0.0)
            assert result.token_ids == expected([1, 2, 3], max_tokens=1, temperature=0.0)
            assert result.timings.kv_bytes == 0
            assert (
                cluster.workers["decode-0"].engine.load().free_blocks
                == cluster.workers["decode-0"].engine.pool.num_blocks
            )
            await cluster.assert_idle()

    asyncio.run(scenario())


@pytest.mark.parametrize("after_tokens", [0, 1, 2, 5])
def test_leaving_the_stream_frees_everything(after_tokens: int) -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1, worker={"model": "modelled:paced"})) as cluster:
            stream = cluster.client.stream(list(range(300)), max_tokens=150, temperature=0.0)
            if after_tokens:
                seen = 0
                async for event in stream:
                    seen += len(event.token_ids)
                    if seen >= after_tokens:
                        break
            else:
                await asyncio.sleep(0.02)
            await stream.aclose()
            await cluster.assert_idle()
            result = await cluster.client.generate([1, 2, 3], max_tokens=4, temperature=0.0)  # the workers are well
            assert result.token_ids == expected([1, 2, 3], max_tokens=4, temperature=0.0)

    asyncio.run(scenario())


def test_cancel_by_id_ends_the_stream_and_is_idempotent() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1, worker={"model": "modelled:paced"})) as cluster:
            stream = cluster.client.stream(list(range(50)), max_tokens=400, temperature=0.0, request_id="mine")
            with pytest.raises(Cancelled):
                async for event in stream:
                    if event.index == 3:
                        assert await cluster.client.cancel("mine")
            assert not await cluster.client.cancel("mine")
            assert not await cluster.client.cancel("never heard of")
            await cluster.assert_idle()

    asyncio.run(scenario())


BAD_REQUESTS = [
    ({"token_ids": {"ids": []}}, "prompt"),
    ({}, "prompt"),
    ({"token_ids": {"ids": [1, 2, 32_000]}}, "prompt"),
    ({"token_ids": {"ids": [1] * 600}}, "prompt"),
    ({"text": "this model has no tokenizer"}, "prompt"),
    ({"chat": {"messages": []}}, "prompt"),
    ({"token_ids": {"ids": [1]}, "sampling": {"temperature": float("nan")}}, "sampling.temperature"),
    ({"token_ids": {"ids": [1]}, "sampling": {"temperature": -1}}, "sampling.temperature"),
    ({"token_ids": {"ids": [1]}, "sampling": {"top_p": 0}}, "sampling.top_p"),
    ({"token_ids": {"ids": [1]}, "sampling": {"top_k": -1}}, "sampling.top_k"),
    ({"token_ids": {"ids": [1]}, "sampling": {"max_tokens": 0}}, "sampling.max_tokens"),
    ({"token_ids": {"ids": [1] * 500}, "sampling": {"max_tokens": 13}}, "sampling.max_tokens"),
    ({"token_ids": {"ids": [1]}, "sampling": {"n": 0}}, "sampling.n"),
    ({"token_ids": {"ids": [1]}, "sampling": {"logit_bias": {32_000: 1}}}, "sampling.logit_bias"),
    ({"token_ids": {"ids": [1]}, "sampling": {"stop_token_ids": [32_000]}}, "sampling.stop_token_ids"),
    ({"token_ids": {"ids": [1]}, "sampling": {"stop": ["x"]}}, "sampling.stop"),
    ({"token_ids": {"ids": [1]}, "goal": {"ttft_s": float("inf"), "tpot_s": 1}}, "goal.ttft_s"),
    ({"token_ids": {"ids": [1]}, "goal_class": "gold"}, "goal_class"),
    ({"token_ids": {"ids": [1]}, "request_id": "x" * 200}, "request_id"),
]


def test_bad_requests_are_refused_by_field_and_hurt_nobody() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster, grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            for fields, field in BAD_REQUESTS:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async for _ in stub.Generate(generation_pb2.GenerateRequest(**fields)):
                        pass
                error = error_from_rpc(caught.value, cluster.addresses[0], "generate")
                assert isinstance(error, InvalidRequest), f"{fields}: {error!r}"
                assert error.field == field
            with pytest.raises(ModelNotFound, match="test-model"):
                await cluster.client.generate([1], model="gpt-5")
            result = await cluster.client.generate([1, 2, 3], max_tokens=4, temperature=0.0)
            assert result.token_ids == expected([1, 2, 3], max_tokens=4, temperature=0.0)
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_status_tells_workers_links_and_load() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 2)) as cluster:
            status = await cluster.client.status()
            assert [worker.id for worker in status.workers] == ["decode-0", "decode-1", "prefill-0"]
            assert {worker.state for worker in status.workers} == {"ready"}
            assert all(worker.free_blocks == worker.total_blocks > 0 for worker in status.workers)
            assert status.gateways[0].grpc == cluster.addresses[0]

    asyncio.run(scenario())


def test_overload_is_refused_with_a_reason_and_queued_requests_end() -> None:
    async def scenario() -> None:
        small = {"kv_bytes": 40 * 8 * SHAPE.kv_token_bytes, "max_model_len": 300, "model": "modelled:paced"}
        async with running(make_plan(1, 1, worker=small, max_queued=4)) as cluster:
            calls = [cluster.client.generate(list(range(200)), max_tokens=60, temperature=0.0) for _ in range(12)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            refused = [result for result in results if isinstance(result, Overloaded)]
            answered = [result for result in results if isinstance(result, GenerationResult)]
            assert len(refused) + len(answered) == 12
            assert refused
            assert all("queue is full" in error.reason for error in refused)
            assert {r.token_ids for r in answered} == {expected(list(range(200)), max_tokens=60, temperature=0.0)}
            await cluster.assert_idle()

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
def test_a_worker_that_vanishes_mid_stream_costs_no_token(victim: str) -> None:
    async def scenario() -> None:
        plan = make_plan(2, 2, worker={"model": "modelled:paced"}, policy="round_robin")
        async with running(plan) as cluster:
            requests = [(prompt, sampling | {"max_tokens": 40}) for prompt, sampling in some_requests(16)]
            answers = asyncio.create_task(generate_all(cluster, requests))
            await asyncio.sleep(0.15)
            await cluster.workers[victim].stop()
            for (prompt, sampling), result in zip(requests, await answers, strict=True):
                assert result.token_ids == expected(prompt, **sampling)
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_a_clients_deadline_ends_the_request_everywhere() -> None:
    async def scenario() -> None:
        async with (
            running(make_plan(1, 1, worker={"model": "modelled:paced"})) as cluster,
            grpc.aio.insecure_channel(cluster.addresses[0]) as channel,
        ):
            stub = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            message = generation_pb2.GenerateRequest(token_ids=generation_pb2.TokenIds(ids=range(50)))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub.Generate(message, timeout=0.2):
                    pass
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_control_traffic_of_a_request_does_not_grow_with_its_tokens() -> None:
    """No call, no handoff message and no order per token: only the stream of step outputs grows."""

    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            await cluster.client.generate([1, 2, 3], max_tokens=2, temperature=0.0)  # opens the link
            prompt = list(range(60))
            counts = []
            for max_tokens in (2, 400):
                before = cluster.count_control_messages()
                await cluster.client.generate(prompt, max_tokens=max_tokens, temperature=0.0)
                await cluster.assert_idle()
                counts.append(cluster.count_control_messages() - before)
                prompt = [token + 1000 for token in prompt]  # no prefix in common
            assert counts[0] > 0
            assert counts[0] == counts[1]

    asyncio.run(scenario())


def test_two_gateways_share_the_workers() -> None:
    async def scenario() -> None:
        plan = make_plan(1, 1)
        second = replace(plan.gateways[0], gateway_id="gateway-1")
        async with running(replace(plan, gateways=(plan.gateways[0], second))) as cluster:
            assert len(set(cluster.addresses)) == 2
            for address in cluster.addresses:
                async with AsyncClient(address) as client:
                    result = await client.generate([1, 2, 3], max_tokens=8, temperature=0.0)
                    assert result.token_ids == expected([1, 2, 3], max_tokens=8, temperature=0.0)
            await cluster.assert_idle()

    asyncio.run(scenario())


def test_listeners_are_on_the_configured_interface_only() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1, worker={"link": "gloo"})) as cluster:
            await cluster.client.generate([1, 2, 3], max_tokens=4, temperature=0.0)  # opens a link and its store
            listening = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            assert len(listening) >= 4  # a gateway, two workers, a link's store
            assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}

    asyncio.run(scenario())


def test_strangers_cannot_speak_to_workers() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            address = cluster.workers["decode-0"].hello().address.address
            async with grpc.aio.insecure_channel(address) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]
                for call in (stub.Attach, stub.Pair):
                    for metadata in ((), (("x-twinpool-cluster", "guess"),)):
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            async for _ in call(iter(()), metadata=metadata):
                                pass
                        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(scenario())


def test_health_and_reflection_answer() -> None:
    async def scenario() -> None:
        async with (
            running(make_plan(1, 1)) as cluster,
            grpc.aio.insecure_channel(cluster.addresses[0]) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "twinpool.v1.GenerationService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            names = [
                service.name
                async for answer in reflection.ServerReflectionInfo(iter((request,)))
                for service in answer.list_services_response.service
            ]
            assert {"twinpool.v1.GenerationService", "twinpool.v1.ClusterService"} <= set(names)

    asyncio.run(scenario())


def test_an_order_that_makes_no_sense_fails_alone() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            address = cluster.workers["decode-0"].hello().address.address
            sent = asyncio.Event()

            async def orders() -> Any:
                yield worker_pb2.GatewayMessage(hello=worker_pb2.AttachHello(gateway_id="stranger"))
                spec = worker_pb2.RequestSpec(request_id="odd", epoch=3, token_ids=[1], num_prompt_tokens=7)
                yield worker_pb2.GatewayMessage(prefill=worker_pb2.PrefillOrder(request=spec))
                await sent.wait()

            async with grpc.aio.insecure_channel(address) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]
                async for message in stub.Attach(orders(), metadata=(("x-twinpool-cluster", SECRET),)):
                    if message.step.failures:
                        assert (message.step.failures[0].request_id, message.step.failures[0].epoch) == ("odd", 3)
                        assert "num_prompt_tokens" in message.step.failures[0].reason
                        sent.set()
            result = await cluster.client.generate([1, 2, 3], max_tokens=4, temperature=0.0)
            assert result.token_ids == expected([1, 2, 3], max_tokens=4, temperature=0.0)

    asyncio.run(scenario())


def test_clients_of_two_gateways_may_choose_the_same_id() -> None:
    async def scenario() -> None:
        plan = make_plan(1, 1, worker={"model": "modelled:paced"})
        second = replace(plan.gateways[0], gateway_id="gateway-1")
        async with running(replace(plan, gateways=(plan.gateways[0], second))) as cluster:
            async with AsyncClient(cluster.addresses[1]) as other:
                calls = [
                    client.generate(prompt, max_tokens=8, temperature=0.0, request_id="same")
                    for client, prompt in ((cluster.client, [1, 2, 3]), (other, [4, 5, 6]))
                ]
                first, last = await asyncio.gather(*calls)
            assert first.request_id == last.request_id == "same"
            assert first.token_ids == expected([1, 2, 3], max_tokens=8, temperature=0.0)
            assert last.token_ids == expected([4, 5, 6], max_tokens=8, temperature=0.0)

    asyncio.run(scenario())


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    async def scenario() -> None:
        async with running(make_plan(1, 1, worker={"model": "modelled:paced"})) as cluster:
            async with cluster.client.stream([1, 2, 3], max_tokens=100, temperature=0.0, request_id="mine") as stream:
                await anext(aiter(stream))
                with pytest.raises(InvalidRequest, match="in use"):
                    await cluster.client.generate([1], max_tokens=2, request_id="mine")
            result = await cluster.client.generate([1], max_tokens=2, temperature=0.0, request_id="mine")
            assert result.request_id == "mine"

    asyncio.run(scenario())


def test_a_quiet_cluster_loses_nobody() -> None:
    """Streams without data are watched by pings, which the workers must not take for an attack."""

    async def scenario() -> None:
        async with running(make_plan(1, 1)) as cluster:
            for _ in range(100):
                await asyncio.sleep(0.1)
                assert {worker.state for worker in (await cluster.client.status()).workers} == {"ready"}

    asyncio.run(scenario())
