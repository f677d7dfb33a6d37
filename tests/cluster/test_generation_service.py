"""A call for several answers, from the client to the workers and back: the right ones, each once, and nothing left."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster.local_cluster import LocalCluster, make_plan, running
from tests.cluster.modelled_text import expected_answer, text_of, text_tokenizer, write_text_model
from twinpool.client.errors import error_from_rpc
from twinpool.client.results import Choice, GenerationResult
from twinpool.cluster.flight import Record
from twinpool.cluster.launch import LaunchPlan
from twinpool.core.errors import Cancelled, InvalidRequest
from twinpool.core.messages import FinishReason
from twinpool.protos.twinpool.v1 import generation_pb2 as pb
from twinpool.protos.twinpool.v1 import generation_pb2_grpc

pytestmark = pytest.mark.slow  # real sockets and real waits

GENERATE = f"/{pb.DESCRIPTOR.services_by_name['GenerationService'].full_name}/Generate"
PACED = {"model": "modelled:paced"}
PROMPT = list(range(300, 400))
SAMPLING: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 11}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_text_model(tmp_path_factory.mktemp("model"))


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def plan_of(text_model: str, prefill: int = 1, decode: int = 1, **options: Any) -> LaunchPlan:
    return make_plan(prefill, decode, **({"model": text_model} | options))


def a_stop_in(choice: int, first: int = 30, size: int = 4) -> str:
    """A stop string that ends one of the answers to PROMPT early."""
    return expected_answer(PROMPT, choice, **SAMPLING).text[first : first + size]


def assert_expected(result: GenerationResult, prompt: list[int], **sampling: Any) -> None:
    for choice in result.choices:
        assert_choice(choice, prompt, **sampling)
    count = sum(len(choice.token_ids) for choice in result.choices)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(prompt), count)


def assert_choice(choice: Choice, prompt: list[int], **sampling: Any) -> None:
    wanted_logprobs = sampling.pop("logprobs", None)
    expected = expected_answer(prompt, choice.index, **sampling)
    assert (choice.token_ids, choice.text) == (expected.token_ids, expected.text)
    assert choice.finish_reason == (FinishReason.STOP if expected.is_stopped else FinishReason.LENGTH)
    scored = () if wanted_logprobs is None else choice.token_ids
    assert tuple(logprob.token_id for logprob in choice.logprobs) == scored
    assert all(logprob.token == text_tokenizer().text_bytes(logprob.token_id) for logprob in choice.logprobs)


def test_several_answers_with_stop_strings_and_logprobs_are_each_the_right_one(text_model: str) -> None:
    async def scenario() -> None:
        async with running(plan_of(text_model)) as cluster:
            sampling = SAMPLING | {"stop": (a_stop_in(1), a_stop_in(2, 60)), "logprobs": 0}
            result = await cluster.client.generate(PROMPT, n=3, prompt_logprobs=0, **sampling)
            assert_expected(result, PROMPT, **sampling)
            assert len({choice.token_ids for choice in result.choices}) == 3
            assert result.choices[1].finish_reason is FinishReason.STOP
            assert (result.text, result.token_ids) == (result.choices[0].text, result.choices[0].token_ids)
            assert result.prompt_token_ids == tuple(PROMPT)
            assert [logprob.token_id for logprob in result.prompt_logprobs] == PROMPT[1:]
            await cluster.assert_idle()

    run(scenario())


def test_answers_come_mixed_and_each_in_order(text_model: str) -> None:
    async def scenario() -> None:
        async with running(plan_of(text_model, worker=PACED)) as cluster:
            next_index = [0, 0, 0]
            order = []
            async for event in cluster.client.stream(PROMPT, n=3, **SAMPLING):
                assert event.index == next_index[event.choice]
                next_index[event.choice] += len(event.token_ids)
                order.append(event.choice)
            assert next_index == [40, 40, 40]
            assert order != sorted(order)

    run(scenario())


def test_the_other_answers_find_the_prompt_in_the_cache(text_model: str) -> None:
    async def scenario() -> None:
        async with running(plan_of(text_model, worker=PACED)) as cluster:
            records: dict[int, Record] = {}
            async for _ in cluster.client.stream(PROMPT, n=3, prompt_logprobs=0, **SAMPLING):
                for flight in cluster.gateway.dispatcher._flights.values():
                    records[flight.request.choice] = flight.record
            assert [records[choice].cached_tokens for choice in range(3)] == [0, 96, 96]

    run(scenario())


def test_an_echo_begins_each_answer(text_model: str) -> None:
    async def scenario() -> None:
        async with running(plan_of(text_model)) as cluster:
            for prompt, ids in ((PROMPT, PROMPT), ("say é: ", text_tokenizer().encode("say é: "))):
                result = await cluster.client.generate(prompt, echo=True, n=2, **SAMPLING)
                for choice in result.choices:
                    whole = (*ids, *expected_answer(ids, choice.index, **SAMPLING).token_ids)
                    assert choice.text == text_of(whole)
                assert result.prompt_token_ids == tuple(ids)

    run(scenario())


def test_a_stop_string_ends_the_work_at_the_workers(text_model: str) -> None:
    async def scenario() -> None:
        async with running(plan_of(text_model, worker=PACED)) as cluster:
            sampling = SAMPLING | {"max_tokens": 400, "stop": a_stop_in(0)}  # 400 steps take four seconds
            result = await cluster.client.generate(PROMPT, **sampling)
            assert result.finish_reason is FinishReason.STOP
            assert result.usage.completion_tokens == len(result.token_ids) < 40
            await cluster.assert_idle(1.0)

    run(scenario())


def test_an_answer_that_is_stopped_leaves_the_workers_while_others_go_on(text_model: str) -> None:
    async def scenario() -> None:
        sampling = SAMPLING | {"max_tokens": 200, "stop": a_stop_in(1)}
        stopped = len(expected_answer(PROMPT, 1, **sampling | {"stop": (a_stop_in(1),)}).token_ids)
        async with running(plan_of(text_model, worker=PACED)) as cluster:
            num_tokens = [0, 0]
            after = 0
            async for event in cluster.client.stream(PROMPT, n=2, **sampling):
                num_tokens[event.choice] += len(event.token_ids)
                after += num_tokens[1] == stopped
                if after == 20:  # steps later
                    assert cluster.gateway.dispatcher.num_open == 1
                    assert cluster.workers["decode-0"].engine.load().running == 1
            assert after > 20
            assert num_tokens[1] == stopped

    run(scenario())


@pytest.mark.parametrize(("victim", "after_events"), [("prefill-0", 1), ("decode-0", 60)])
def test_a_worker_lost_mid_stream_changes_no_answer(text_model: str, victim: str, after_events: int) -> None:
    async def scenario() -> None:
        async with running(plan_of(text_model, 2, 2, worker=PACED, policy="round_robin")) as cluster:
            prompts = [list(range(300 + first, 700)) for first in range(6)]
            stop = expected_answer(prompts[0], 1, **SAMPLING).text[80:84]
            sampling = SAMPLING | {"stop": (stop,), "logprobs": 0}
            num_events = 0
            lost = asyncio.Event()

            async def answer(prompt: list[int]) -> GenerationResult:
                nonlocal num_events
                async with cluster.client.stream(prompt, n=3, prompt_logprobs=0, **sampling) as stream:
                    async for _ in stream:
                        num_events += 1
                        if num_events == after_events:
                            await cluster.workers[victim].stop()
                            lost.set()
                    return stream.result

            results = await asyncio.gather(*map(answer, prompts))
            assert lost.is_set()
            assert any(result.timings.attempts > 1 for result in results)
            for result, prompt in zip(results, prompts, strict=True):
                assert_expected(result, prompt, **sampling)
                assert [logprob.token_id for logprob in result.prompt_logprobs] == prompt[1:]
            await cluster.assert_idle()

    run(scenario())


@pytest.mark.parametrize(("how", "after"), [("leave", 0), ("leave", 1), ("leave", 9), ("cancel", 1), ("cancel", 9)])
def test_a_call_that_ends_early_frees_all_its_answers(text_model: str, how: str, after: int) -> None:
    async def scenario() -> None:
        async with running(plan_of(text_model, worker=PACED)) as cluster:
            async with cluster.client.stream(PROMPT, n=4, request_id="mine", max_tokens=300, seed=1) as stream:
                for _ in range(after):
                    await anext(stream)
                if how == "cancel":
                    assert await cluster.client.cancel("mine")
                    with pytest.raises(Cancelled):
                        await read_all(stream)
            await cluster.assert_idle(2.0)

    run(scenario())


async def read_all(stream: Any) -> None:
    async for _ in stream:
        pass


numbers = st.one_of(st.sampled_from([0, 1, -1, 2**31, -(2**31), 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1))
reals = st.one_of(st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.0, 1e300]), st.floats(-200, 200))
ids = st.one_of(st.integers(0, 40_000), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1]))
any_sampling = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("max_tokens", "min_tokens", "top_k", "logprobs", "prompt_logprobs"), numbers),
        "n": st.integers(-1, 4) | numbers,
        "seed": st.integers(0, 2**64 - 1),
        **dict.fromkeys(("temperature", "top_p", "min_p"), reals),
        **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), reals),
        "logit_bias": st.dictionaries(ids, reals, max_size=3),
        "stop": st.lists(st.sampled_from(["", "a", "é", "\0", "x" * 257]), max_size=18),
        "stop_token_ids": st.lists(ids, max_size=70),
        "ignore_eos": st.booleans(),
    },
)
any_message = st.fixed_dictionaries(
    {"sampling": any_sampling},
    optional={
        "goal": st.fixed_dictionaries({"ttft_s": reals, "tpot_s": reals}),
        "echo": st.booleans(),
        "goal_class": st.sampled_from(["", "batch", "\0"]),
        "tenant": st.sampled_from(["", "acme", "A", "\0", "x" * 41]),
        "model": st.sampled_from(["", "test-model"]),
    },
)
any_prompt = st.one_of(
    st.fixed_dictionaries({"token_ids": st.fixed_dictionaries({"ids": st.lists(ids, max_size=4)})}),
    st.fixed_dictionaries({"text": st.text(max_size=5)}),
    st.just({}),
    st.just({"token_ids": {"ids": [5] * 100}}),
)
TOP_FIELDS = {"goal.ttft_s", "goal.tpot_s", "goal_class", "tenant", "prompt", "text", "token_ids", "echo", "chat"}


async def answer_or_field(cluster: LocalCluster, stub: Any, message: pb.GenerateRequest) -> str | None:
    """The field that was refused; None for an answer. Any other end is an error."""
    try:
        async for _ in stub.Generate(message, timeout=20):
            pass
    except grpc.aio.AioRpcError as error:
        refused = error_from_rpc(error, cluster.addresses[0], "generate")
        assert isinstance(refused, InvalidRequest), repr(refused)
        return refused.field
    return None


def test_any_message_is_answered_or_refused_by_field_and_the_cluster_stays_well(text_model: str) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        up = running(plan_of(text_model, max_model_len=64, worker={"max_model_len": 64}))
        cluster = loop.run_until_complete(up.__aenter__())
        workers = dict(cluster.workers)

        async def connect() -> tuple[Any, Any]:
            channel = grpc.aio.insecure_channel(cluster.addresses[0])
            return channel, generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]

        channel, stub = loop.run_until_complete(connect())
        outcomes = set()

        @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
        @given(any_message, any_prompt)
        def ask(fields: dict[str, Any], prompt: dict[str, Any]) -> None:
            field = loop.run_until_complete(answer_or_field(cluster, stub, pb.GenerateRequest(**fields, **prompt)))
            outcomes.add(field)
            assert field is None or field in TOP_FIELDS or field.removeprefix("sampling.") in fields["sampling"]

        async def finish() -> None:
            result = await cluster.client.generate(PROMPT[:20], n=2, **SAMPLING)
            assert_expected(result, PROMPT[:20], **SAMPLING)
            await cluster.assert_idle()
            assert cluster.workers == workers
            assert {worker.state for worker in (await cluster.client.status()).workers} == {"ready"}
            await channel.close()

        ask()
        loop.run_until_complete(finish())
        loop.run_until_complete(up.__aexit__(None, None, None))
    assert None in outcomes
    assert len(outcomes) > 8


def test_the_text_model_is_read_as_it_was_written(text_model: str) -> None:
    assert Path(text_model, "tokenizer.json").is_file()
    assert text_of(text_tokenizer().encode("a é 😀\n")) == "a é 😀\n"


def test_malformed_bytes_are_refused_and_a_client_that_leaves_takes_its_work_along(text_model: str) -> None:
    async def scenario() -> None:
        async with (
            running(plan_of(text_model, worker=PACED)) as cluster,
            grpc.aio.insecure_channel(cluster.addresses[0]) as channel,
        ):
            generate = channel.unary_stream(GENERATE, response_deserializer=pb.GenerateResponse.FromString)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(b"\xff\xff", timeout=20).read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            sampling = {"max_tokens": 400, "seed": 1}  # four seconds
            message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), sampling=sampling)
            call = generate(message.SerializeToString(), timeout=20)
            assert (await call.read()).index == 0
            call.cancel()
            await cluster.assert_idle(2.0)

    run(scenario())
