"""Sampling parameters through an engine with a real decoder: in batches, in chunks, and over several attempts."""

from dataclasses import replace

import pytest

from tests.cluster.engine_builders import Recorder, make_config, make_request, make_sequence
from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Destination
from twinpool.core.messages import FinishReason, Request
from twinpool.core.sampling import TokenLogprobs
from twinpool.model.batch import Runner
from twinpool.model.load import load_runner

CONFIG = make_config(model="dummy:tiny", dtype="float32", kv_bytes=4 << 20)
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3}
KINDS = {
    "greedy": {},
    "penalties": PENALTIES,
    "rewarded": {"repetition_penalty": 0.5, "frequency_penalty": -0.5},
    "bias": {"logit_bias": ((3, 9.0), (100, -100.0))},
    "drawn": {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 7, "logit_bias": ((3, 4.0),)},
    "all": {"temperature": 1.3, "min_p": 0.02, "seed": 8, "min_tokens": 9, "stop_token_ids": (3,), **PENALTIES},
}


@pytest.fixture(scope="module")
def runner() -> Runner:
    return load_runner(CONFIG)


def run(runner: Runner, *requests: Request, **changes: object) -> Recorder:
    """Run requests together on a fresh engine, whose prefix cache is empty."""
    events = Recorder()
    engine = Engine(replace(CONFIG, **changes), runner, events, lambda: 0.0)  # type: ignore[arg-type]
    for request in requests:
        engine.submit(make_sequence(request), Destination.LOCAL)
    while engine.step():
        engine.pool.check()
    assert engine.pool.is_idle
    assert not events.failures
    return events


def values(found: list[TokenLogprobs] | tuple[TokenLogprobs, ...]) -> list[float]:
    """The numbers alone, for comparisons within rounding."""
    return [value for one in found for value in (one.logprob, *(logprob for _, logprob in one.top))]


def logprobs_of(events: Recorder, request_id: str) -> list[TokenLogprobs]:
    found = [token.logprobs for token in events.tokens if token.key.request_id == request_id]
    return [one for one in found if one is not None]


def test_requests_of_every_kind_answer_together_as_alone(runner: Runner) -> None:
    requests = [
        make_request(name, range(5 + i, 24 + 7 * i), max_tokens=14, logprobs=i % 3, **sampling)
        for i, (name, sampling) in enumerate(KINDS.items())
    ]
    together = run(runner, *requests)
    answers = {name: together.answer(name) for name in KINDS}
    for request in requests:
        name = request.request_id
        alone = run(runner, request)
        assert answers[name] == alone.answer(name)
        assert [one.token_id for one in logprobs_of(together, name)] == answers[name]
        assert {len(one.top) for one in logprobs_of(together, name)} == {request.sampling.logprobs}
        assert values(logprobs_of(together, name)) == pytest.approx(values(logprobs_of(alone, name)), abs=1e-4)


@pytest.mark.parametrize(
    "kind", [kind if kind in ("penalties", "all") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_second_attempt_goes_on_from_any_token_as_the_first_would_have(runner: Runner, kind: str) -> None:
    whole = make_request("whole", max_tokens=14, logprobs=2, **KINDS[kind])
    undisturbed = run(runner, whole)
    answer = undisturbed.answer("whole")
    attempts = [
        replace(whole, request_id=f"after{k}", epoch=2, token_ids=whole.token_ids + tuple(answer[:k]))
        for k in range(1, len(answer))
    ]
    events = run(runner, *attempts, make_request("other", range(90, 99), temperature=1.0))
    assert len(answer) > 5
    for k, attempt in enumerate(attempts, 1):
        tokens = [token for token in events.tokens if token.key == make_sequence(attempt).key]
        assert [token.token_id for token in tokens] == answer[k:]
        assert [token.index for token in tokens] == list(range(k, len(answer)))
        rest = logprobs_of(events, attempt.request_id)
        assert values(rest) == pytest.approx(values(logprobs_of(undisturbed, "whole")[k:]), abs=1e-4)
        assert tokens[-1].finish is not None


def test_penalties_and_bias_change_the_answer(runner: Runner) -> None:
    greedy = [name for name, sampling in KINDS.items() if "temperature" not in sampling]
    events = run(runner, *(make_request(name, max_tokens=14, **KINDS[name]) for name in greedy))
    assert len({tuple(events.answer(name)) for name in greedy}) == len(greedy)
    assert set(events.answer("bias")) == {3}
    assert len(set(events.answer("rewarded"))) < len(set(events.answer("penalties")))


@pytest.mark.parametrize("least", [0, 1, 4, 8])
def test_end_tokens_wait_for_min_tokens(runner: Runner, least: int) -> None:
    wish = {"logit_bias": ((3, 100.0),), "stop_token_ids": (3,)}  # the model wants nothing but the end
    events = run(runner, make_request(max_tokens=8, min_tokens=least, **wish))
    answer, finish = events.answer("r"), events.tokens[-1].finish
    assert 3 not in answer[:least]
    assert len(answer) == min(least + 1, 8)
    assert finish is (FinishReason.STOP if least < 8 else FinishReason.LENGTH)


def test_an_end_token_outside_the_vocabulary_can_wait_too(runner: Runner) -> None:
    events = run(runner, make_request(max_tokens=3, min_tokens=3, stop_token_ids=(2**31 - 1,)))
    assert len(events.answer("r")) == 3


@pytest.mark.parametrize("chunk_tokens", [8, 16, 512])
def test_prompt_logprobs_come_once_with_the_first_token_whatever_the_chunks(runner: Runner, chunk_tokens: int) -> None:
    prompt = range(5, 75)
    scored = make_request("scored", prompt, prompt_logprobs=2, logprobs=0)
    other = make_request("other", range(7, 60), temperature=1.0)
    tokens = run(runner, scored, other, chunk_tokens=chunk_tokens).tokens
    first, *later = [token for token in tokens if token.key.request_id == "scored"]
    assert [one.token_id for one in first.prompt_logprobs] == list(prompt)[1:]
    assert all(token.prompt_logprobs == () for token in later)
    alone = run(runner, scored, chunk_tokens=512).tokens[0].prompt_logprobs
    assert [[i for i, _ in one.top] for one in first.prompt_logprobs] == [[i for i, _ in one.top] for one in alone]
    assert values(first.prompt_logprobs) == pytest.approx(values(alone), abs=1e-4)


def test_a_prompts_logprob_is_the_one_its_token_has_as_an_answer(runner: Runner) -> None:
    events = run(runner, make_request("answer", max_tokens=10, logprobs=3))
    said = make_request("said", prompt=(*range(5, 40), *events.answer("answer")), prompt_logprobs=3)  # type: ignore[arg-type]
    scores = run(runner, said).tokens[0].prompt_logprobs[34:]
    assert [one.token_id for one in scores] == events.answer("answer")
    assert values(scores) == pytest.approx(values(logprobs_of(events, "answer")), abs=1e-4)


def test_a_prompt_that_is_in_the_prefix_cache_is_scored_whole(runner: Runner) -> None:
    events = Recorder()
    engine = Engine(CONFIG, runner, events, lambda: 0.0)
    for request in (make_request("warm"), make_request("scored", prompt_logprobs=0)):
        engine.submit(make_sequence(request), Destination.LOCAL)
        while engine.step():
            pass
    first = next(token for token in events.tokens if token.key.request_id == "scored")
    assert [one.token_id for one in first.prompt_logprobs] == list(range(6, 40))
    assert events.answer("scored") == events.answer("warm")


def test_a_second_attempt_does_not_score_the_prompt_again(runner: Runner) -> None:
    request = make_request(prompt_logprobs=1)
    answer = run(runner, request).answer("r")
    again = replace(request, epoch=2, token_ids=request.token_ids + tuple(answer[:3]))
    events = run(runner, again)
    assert events.answer("r") == answer[3:]
    assert all(token.prompt_logprobs == () for token in events.tokens)
