"""What a client may ask for, and what it is told when it may not: the field's name and why."""

from typing import Any

import pytest

from tests.cluster.local_cluster import make_plan
from tests.cluster.modelled_text import SHAPE, text_tokenizer
from twinpool.cluster.intake import Call, Intake
from twinpool.core.errors import InvalidRequest, ModelNotFound
from twinpool.core.sampling import LIMITS, SamplingParams
from twinpool.model.shape import load_shape
from twinpool.protos.twinpool.v1 import generation_pb2 as pb

VOCABULARY = SHAPE.vocab_size
CONFIG = make_plan(1, 1).gateways[0]  # a context of 512 tokens


def accept(*, has_tokenizer: bool = True, **fields: Any) -> Call:
    intake = Intake(CONFIG, load_shape("modelled:instant", "auto"), text_tokenizer() if has_tokenizer else None)
    return intake.accept(pb.GenerateRequest(**({"token_ids": {"ids": [1, 2, 3]}} | fields)))


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        accept(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sampling": {"logit_bias": {VOCABULARY: 1.0}}}, "sampling.logit_bias"),
        ({"sampling": {"stop_token_ids": [5, VOCABULARY]}}, "sampling.stop_token_ids"),
        ({"sampling": {"stop": ["x"]}, "has_tokenizer": False}, "sampling.stop"),
        ({"sampling": {"stop": [""]}}, "sampling.stop"),
        ({"sampling": {"min_tokens": 257}}, "sampling.min_tokens"),
        ({"sampling": {"min_tokens": 20}, "token_ids": {"ids": [1] * 500}}, "sampling.min_tokens"),
        ({"sampling": {"max_tokens": 13}, "token_ids": {"ids": [1] * 500}}, "sampling.max_tokens"),
        ({"sampling": {"n": 129}}, "sampling.n"),
        ({"echo": True, "chat": {"messages": [{"role": "user", "content": "hi"}]}}, "echo"),
        ({"token_ids": {"ids": [VOCABULARY]}}, "token_ids"),
        ({"token_ids": {"ids": [1] * 512}}, "token_ids"),
        ({"text": "x" * (512 * 64 + 1)}, "text"),
        ({"text": "x", "has_tokenizer": False}, "text"),
        ({"goal_class": "gold"}, "goal_class"),
        ({"request_id": "a\n"}, "request_id"),
        ({"tenant": "a\n"}, "tenant"),
        ({"tenant": "x" * 41}, "tenant"),
    ],
)
def test_a_refusal_names_its_field(fields: dict[str, Any], field: str) -> None:
    assert refusal(**fields).field == field


def test_every_answer_to_a_call_that_wants_exact_kv_wants_it() -> None:
    assert [request.lossless_kv for request in accept(lossless_kv=True, sampling={"n": 2}).requests] == [True, True]
    assert not accept().requests[0].lossless_kv


def test_a_tenant_is_the_salt_of_its_prefix_cache_and_default_is_who_names_none() -> None:
    for tenant, name, salt in (("acme", "acme", "acme"), ("", "default", ""), ("default", "default", "")):
        call = accept(tenant=tenant, sampling={"n": 2})
        assert (call.standing.tenant, {request.tenant_salt for request in call.requests}) == (name, {salt})


def test_refusals_say_why() -> None:
    assert "not below the vocabulary size 32000" in refusal(sampling={"stop_token_ids": [VOCABULARY]}).reason
    assert "leave room for 12" in refusal(sampling={"min_tokens": 20}, token_ids={"ids": [1] * 500}).reason
    assert "stop_token_ids" in refusal(sampling={"stop": ["x"]}, has_tokenizer=False).reason


def test_answers_to_a_long_prompt_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpool.cluster.intake.MAX_CALL_TOKENS", 1000)
    assert refusal(token_ids={"ids": [1] * 101}, sampling={"n": 10}).field == "sampling.n"
    assert len(accept(token_ids={"ids": [1] * 100}, sampling={"n": 10}).requests) == 10


def test_a_scored_prompt_fits_into_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpool.cluster.intake.MAX_PROMPT_SCORES", 1000)
    refused = refusal(token_ids={"ids": [1] * 101}, sampling={"prompt_logprobs": 9})
    assert (refused.field, "1010 logprobs" in refused.reason) == ("sampling.prompt_logprobs", True)
    accept(token_ids={"ids": [1] * 100}, sampling={"prompt_logprobs": 9})
    accept(token_ids={"ids": [1] * 500}, sampling={"prompt_logprobs": 0})
    accept(token_ids={"ids": [1] * 500})


def test_another_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        accept(model="other")


def test_max_tokens_is_cut_to_the_room_only_where_it_was_not_asked_for() -> None:
    long = {"ids": [1] * 500}
    assert accept(token_ids=long).requests[0].sampling.max_tokens == 12
    assert accept(token_ids=long, sampling={"max_tokens": 12}).requests[0].sampling.max_tokens == 12
    assert accept().requests[0].sampling.max_tokens == SamplingParams().max_tokens


def test_each_answer_is_a_request_of_one_seed_and_its_own_choice() -> None:
    call = accept(sampling={"n": 3, "stop": ["x"], "logprobs": 2, "prompt_logprobs": 1})
    assert [request.choice for request in call.requests] == [0, 1, 2]
    assert len({request.request_id for request in call.requests}) == 3
    assert {request.sampling.seed for request in call.requests} == {call.sampling.seed}
    assert call.sampling.seed is not None
    assert call.sampling.stop == ("x",)
    assert {request.sampling.stop for request in call.requests} == {()}  # the gateway watches for them
    assert [request.sampling.prompt_logprobs for request in call.requests] == [1, None, None]
    assert {request.sampling.logprobs for request in call.requests} == {2}


def test_an_echo_is_the_text_that_was_sent_and_of_ids_their_text() -> None:
    assert accept(text="a  b é", echo=True).echo == "a  b é"
    ids = text_tokenizer().encode("one é")
    assert accept(token_ids={"ids": ids}, echo=True).echo == "one é"
    assert accept(token_ids={"ids": ids[:-1]}, echo=True).echo == "one "  # the answer completes the character
    assert accept(token_ids={"ids": ids}).echo == ""
    assert accept(token_ids={"ids": ids}, echo=True, has_tokenizer=False).echo == ""


def test_prompt_ids_are_shown_with_echo_or_prompt_logprobs_only() -> None:
    assert not accept().shows_prompt_ids
    assert accept(echo=True).shows_prompt_ids
    assert accept(sampling={"prompt_logprobs": 0}).shows_prompt_ids


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_every_parameter_reaches_the_workers_but_those_of_the_gateway(name: str) -> None:
    odd: dict[str, Any] = {
        "logit_bias": {7: 1.5},
        "stop": ["x"],
        "stop_token_ids": [9],
        "ignore_eos": True,
        "max_tokens": 7,
        "n": 2,
    }
    value = odd.get(name, 1 if isinstance(getattr(SamplingParams(), name), int | None) else 0.5)
    sampling = accept(sampling={name: value}).requests[0].sampling
    reached = getattr(sampling, name) != getattr(SamplingParams(), name)
    assert reached == (name not in ("stop", "n"))
