"""Many requests of every kind at once, each with its own parameters: every one gets the answer it would get alone."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.local_cluster import LocalCluster, make_plan, running
from tests.cluster.modelled_text import expected_answer, write_text_model
from twinpool.client.results import GenerationResult, TokenLogprob
from twinpool.core.messages import FinishReason, Goal

pytestmark = pytest.mark.slow

Logprobs = tuple[TokenLogprob, ...]
Requests = list[tuple[list[int], dict[str, Any]]]
TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny"
OTHER_OPTIONS = ("goal", "goal_class", "n", "logprobs", "prompt_logprobs", "echo")


def modelled_requests(count: int) -> Requests:
    """Mixed lengths and parameters; some begin alike; a third has a stop string from its own answer."""
    rng = random.Random(7)
    requests: Requests = []
    for number in range(count):
        start = 300 + rng.randrange(4)
        prompt = list(range(start, start + rng.randint(1, 150)))
        sampling: dict[str, Any] = {"max_tokens": rng.randint(1, 30), "seed": number, "temperature": number % 2 * 0.8}
        sampling |= rng.choice(
            (
                {},
                {"repetition_penalty": 1.3, "presence_penalty": 0.5},
                {"frequency_penalty": -1.0, "top_k": 20, "top_p": 0.7},
                {"min_p": 0.1, "logit_bias": {5: 3.0, 6: -100.0}},
            )
        )
        if number % 3 == 0:
            alone = {name: sampling[name] for name in ("max_tokens", "seed", "temperature")}
            text = expected_answer(prompt, **alone).text
            at = rng.randrange(max(1, len(text) - 2))
            least = rng.choice((0, 0, sampling["max_tokens"] // 2))
            sampling |= {"stop": [text[at : at + 3], "\x00"], "min_tokens": least}
        sampling |= rng.choice(({}, {"n": 2}, {"n": 3, "logprobs": 0}, {"logprobs": 1, "prompt_logprobs": 0}))
        sampling |= rng.choice(({}, {"goal": Goal(0.5, 0.01)}, {"goal_class": "batch"}))
        requests.append((prompt, sampling))
    return requests


def assert_expected(result: GenerationResult, prompt: list[int], options: dict[str, Any]) -> None:
    assert len(result.choices) == options.get("n", 1)
    sampling = {name: value for name, value in options.items() if name not in OTHER_OPTIONS}
    sampling |= {"stop": tuple(options.get("stop", ())), "logit_bias": tuple(options.get("logit_bias", {}).items())}
    for choice in result.choices:
        expected = expected_answer(prompt, choice.index, **sampling)
        assert (choice.token_ids, choice.text) == (expected.token_ids, expected.text)
        assert choice.finish_reason is (FinishReason.STOP if expected.is_stopped else FinishReason.LENGTH)
        scored = choice.token_ids if "logprobs" in options else ()
        assert tuple(logprob.token_id for logprob in choice.logprobs) == scored
    scored = tuple(prompt[1:]) if "prompt_logprobs" in options else ()
    assert tuple(logprob.token_id for logprob in result.prompt_logprobs) == scored
    count = sum(len(choice.token_ids) for choice in result.choices)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(prompt), count)


async def together(cluster: LocalCluster, requests: Requests) -> list[GenerationResult]:
    return await asyncio.gather(*(cluster.client.generate(prompt, **options) for prompt, options in requests))


def test_200_requests_of_every_kind_end_right(tmp_path: Path) -> None:
    async def scenario() -> None:
        requests = modelled_requests(200)
        async with running(make_plan(2, 2, 1, model=write_text_model(tmp_path))) as cluster:
            results = await together(cluster, requests)
            await cluster.assert_idle()
        for result, (prompt, options) in zip(results, requests, strict=True):
            assert_expected(result, prompt, options)
        reasons = [choice.finish_reason for result in results for choice in result.choices]
        assert reasons.count(FinishReason.STOP) > 20
        assert reasons.count(FinishReason.LENGTH) > 100

    asyncio.run(scenario())


def torch_requests(count: int) -> Requests:
    rng = random.Random(3)
    shared = [rng.randrange(2, 2048) for _ in range(60)]
    requests: Requests = []
    for number in range(count):
        prompt = shared[: rng.choice((0, 20, 60))] + [rng.randrange(2, 2048) for _ in range(rng.randint(1, 40))]
        sampling: dict[str, Any] = {"max_tokens": rng.randint(2, 16), "seed": number, "temperature": number % 2 * 1.0}
        sampling |= rng.choice(
            (
                {},
                {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5},
                {"min_p": 0.05, "logit_bias": {9: 5.0, 40: -100.0}},
                {"stop": [" ", "e"], "min_tokens": 2},
                {"stop": ["\n"], "n": 2},
                {"n": 3, "top_p": 0.9},
            )
        )
        sampling |= rng.choice(({}, {"logprobs": 3}, {"logprobs": 0, "prompt_logprobs": 2}))
        requests.append((prompt, sampling))
    return requests


def assert_alike(ours: Logprobs, theirs: Logprobs, token_ids: Sequence[int]) -> None:
    """The same tokens, as probable as fp32 sums in another order find them."""
    assert [token.token_id for token in ours] == [token.token_id for token in theirs] == list(token_ids)
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [top.logprob for top in one.top] == pytest.approx([top.logprob for top in other.top], abs=1e-4)
        assert all(top.logprob >= one.logprob for top in one.top[:1])


def test_a_real_model_gives_every_request_the_answer_that_it_gets_alone() -> None:
    """In fp32, on a model whose logits are well apart."""

    async def scenario() -> None:
        worker = {"model": str(TINY), "dtype": "float32", "max_model_len": 256, "kv_bytes": 16 << 20}
        requests = torch_requests(24)
        async with running(make_plan(0, 0, 1, worker=worker | {"prefix_cache": False})) as alone:
            expected = [await alone.client.generate(prompt, **options) for prompt, options in requests]
        async with running(make_plan(2, 2, worker=worker, policy="round_robin")) as cluster:
            results = await together(cluster, requests)
            await cluster.assert_idle()
        for result, wanted, (prompt, options) in zip(results, expected, requests, strict=True):
            assert len(result.choices) == options.get("n", 1)
            for ours, theirs in zip(result.choices, wanted.choices, strict=True):
                assert replace(ours, logprobs=()) == replace(theirs, logprobs=())
                assert_alike(ours.logprobs, theirs.logprobs, ours.token_ids if "logprobs" in options else ())
            assert_alike(
                result.prompt_logprobs, wanted.prompt_logprobs, prompt[1:] if "prompt_logprobs" in options else ()
            )
        stopped = sum(choice.finish_reason is FinishReason.STOP for result in results for choice in result.choices)
        assert stopped > 3

    asyncio.run(scenario())
