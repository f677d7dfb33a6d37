"""With `deterministic` on, a bfloat16 cluster gives each request the bits that it gives it alone, whatever happens.

Tokens and log probabilities are compared for equality: no tolerance anywhere.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.engine_builders import Optimist
from tests.cluster.local_cluster import LocalCluster, make_plan, running
from twinpool.client.results import GenerationResult, TokenLogprob

pytestmark = pytest.mark.slow

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny"
BLOCK_TOKENS, BLOCK_BYTES = 16, 16 << 10  # of this model in bfloat16
WORKER: dict[str, Any] = {
    "model": str(TINY),
    "dtype": "bfloat16",
    "deterministic": True,
    "block_tokens": BLOCK_TOKENS,
    "kv_bytes": 256 * BLOCK_BYTES,
    "max_model_len": 256,
    "chunk_tokens": 64,
}
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "logprobs": 1},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "logprobs": 0, "prompt_logprobs": 1},
    {"temperature": 1.2, "presence_penalty": 0.5, "min_p": 0.02, "logit_bias": {9: 2.0}, "logprobs": 3},
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client can compare."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]


Requests = list[tuple[list[int], dict[str, Any]]]
Answers = list[Answer]


def make_requests(count: int = 16) -> Requests:
    """Prompts under and over a chunk, some that begin alike; four kinds of sampling, each with log probabilities."""
    rng = random.Random(11)
    shared = [rng.randrange(2, 2048) for _ in range(90)]
    requests: Requests = []
    for number in range(count):
        own = [rng.randrange(2, 2048) for _ in range(rng.randint(1, 50))]
        sampling = KINDS[number % len(KINDS)] | {"seed": number, "max_tokens": rng.randint(16, 40), "ignore_eos": True}
        requests.append((shared[: rng.choice((0, 33, 90))] + own, sampling))
    return requests


REQUESTS = make_requests()


def answer_of(result: GenerationResult) -> Answer:
    return Answer(result.token_ids, result.choices[0].logprobs, result.prompt_logprobs)


async def one_at_a_time(cluster: LocalCluster, requests: Requests = REQUESTS) -> Answers:
    return [answer_of(await cluster.client.generate(prompt, **sampling)) for prompt, sampling in requests]


async def together(cluster: LocalCluster, requests: Requests = REQUESTS) -> Answers:
    results = await asyncio.gather(*(cluster.client.generate(prompt, **sampling) for prompt, sampling in requests))
    return [answer_of(result) for result in results]


def answers_of(pools: dict[str, Any], ask: Callable[[LocalCluster], Awaitable[Answers]], **worker: object) -> Answers:
    """Those of a cluster of its own, which is idle in the end."""

    async def scenario() -> Answers:
        options = {"prefill": 0, "decode": 0} | pools
        async with running(make_plan(**options, worker=WORKER | worker)) as cluster:
            answers = await ask(cluster)
            await cluster.assert_idle()
        return answers

    return asyncio.run(scenario())


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone() -> Answers:
    """Each request by itself on an idle worker, its prompt whole and computed anew."""
    return answers_of({"mixed": 1}, one_at_a_time, prefix_cache=False, chunk_tokens=256)


def test_the_requests_are_of_many_lengths_and_every_token_is_scored(alone: Answers) -> None:
    for answer, (prompt, sampling) in zip(alone, REQUESTS, strict=True):
        assert len(answer.token_ids) == sampling["max_tokens"]
        assert tuple(one.token_id for one in answer.logprobs) == answer.token_ids
        scored = prompt[1:] if "prompt_logprobs" in sampling else []
        assert [one.token_id for one in answer.prompt_logprobs] == scored
    assert len({answer.token_ids for answer in alone}) == len(REQUESTS)


@pytest.mark.parametrize("chunk_tokens", [20, 256])
def test_together_in_mixed_batches_as_alone_whatever_the_chunks(alone: Answers, chunk_tokens: int) -> None:
    assert answers_of({"mixed": 1}, together, chunk_tokens=chunk_tokens) == alone


def test_disaggregated_as_local_and_with_warm_prefix_caches(alone: Answers) -> None:
    async def twice(cluster: LocalCluster) -> Answers:
        assert await together(cluster) == alone
        return await together(cluster)

    assert answers_of({"prefill": 2, "decode": 2, "policy": "round_robin"}, twice) == alone


def test_requests_of_lost_decode_workers_go_on_elsewhere_with_the_same_bits(alone: Answers) -> None:
    """One worker is lost early and one late, when the sixteen answers have come to many different indices."""
    num_tokens = [0] * len(REQUESTS)
    due = [(20, "decode-0"), (120, "decode-1")]
    indices: set[int] = set()

    async def follow(cluster: LocalCluster, number: int) -> GenerationResult:
        prompt, sampling = REQUESTS[number]
        async with cluster.client.stream(prompt, **sampling) as stream:
            async for event in stream:
                num_tokens[number] += len(event.token_ids)
                if due and sum(num_tokens) >= due[0][0]:
                    indices.update(num_tokens)
                    await cluster.workers[due.pop(0)[1]].stop()
            return stream.result

    async def ask(cluster: LocalCluster) -> Answers:
        results = await asyncio.gather(*(follow(cluster, number) for number in range(len(REQUESTS))))
        assert sum(result.timings.attempts - 1 for result in results) > 4
        return [answer_of(result) for result in results]

    pools = {"prefill": 1, "decode": 3, "policy": "round_robin", "max_attempts": 5}
    assert answers_of(pools, ask) == alone
    assert len(indices) > 4


def test_preempted_requests_come_back_with_the_same_bits() -> None:
    """Memory for 256 tokens, in blocks of four, and let in by what they hold now: the young give way."""
    long_answers = [
        (list(range(number + 2, 3 * number + 5)), KINDS[number % len(KINDS)] | {"seed": number, "max_tokens": 48})
        for number in range(9)
    ]

    async def ask(cluster: LocalCluster) -> Answers:
        engine = cluster.workers["mixed-0"].engine
        engine.decode.lengths = Optimist()
        answers = await together(cluster, long_answers)
        assert engine.load().preempted > 0
        return answers

    alone = answers_of({"mixed": 1}, lambda cluster: one_at_a_time(cluster, long_answers), prefix_cache=False)
    assert answers_of({"mixed": 1, "max_attempts": 20}, ask, block_tokens=4, kv_bytes=16 * BLOCK_BYTES) == alone


def test_without_it_the_bits_depend_on_the_company() -> None:
    """Else the tests above would prove nothing of the deterministic arithmetic."""
    few, fast = REQUESTS[:6], {"deterministic": False, "prefix_cache": False}
    lone = answers_of({"mixed": 1}, lambda cluster: one_at_a_time(cluster, few), chunk_tokens=256, **fast)
    assert answers_of({"mixed": 1}, lambda cluster: together(cluster, few), chunk_tokens=20, **fast) != lone
