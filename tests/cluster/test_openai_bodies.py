"""Bodies of OpenAI requests: every field arrives under our name, and what is wrong is told by theirs."""

from typing import Any

import pytest

from twinpool.cluster.openai_bodies import Ask, Endpoint, named_as_in, read_body
from twinpool.core.errors import InvalidRequest
from twinpool.core.sampling import SamplingParams

HELLO = [{"role": "user", "content": "hello"}]


def completion(**body: Any) -> Ask:
    return read_body(Endpoint.COMPLETIONS, {"prompt": "hello"} | body)


def chat(**body: Any) -> Ask:
    return read_body(Endpoint.CHAT, {"messages": HELLO} | body)


@pytest.mark.parametrize(
    ("body", "sampling"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_p": 0.5, "n": 3, "seed": 7}, {"top_p": 0.5, "n": 3, "seed": 7}),
        ({"stop": "."}, {"stop": (".",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"presence_penalty": 1, "frequency_penalty": -1.5}, {"presence_penalty": 1.0, "frequency_penalty": -1.5}),
        ({"logit_bias": {"50256": -100, "7": 2.5}}, {"logit_bias": ((7, 2.5), (50256, -100.0))}),
        ({"top_k": 40, "min_p": 0.1}, {"top_k": 40, "min_p": 0.1}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"repetition_penalty": 1.1, "min_tokens": 2}, {"repetition_penalty": 1.1, "min_tokens": 2}),
        ({"ignore_eos": True, "stop_token_ids": [1, 2]}, {"ignore_eos": True, "stop_token_ids": (1, 2)}),
        ({"stop": None, "seed": None, "n": None, "user": "me", "stream": False}, {}),
    ],
)
def test_fields_of_both_endpoints_become_sampling_parameters(body: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert chat(**body).sampling == sampling
    assert completion(**body).sampling == {"max_tokens": 16} | sampling


@pytest.mark.parametrize(
    ("body", "sampling"),
    [
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": False}, {}),
    ],
)
def test_fields_of_chats_become_sampling_parameters(body: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert chat(**body).sampling == sampling


def test_echo_scores_the_prompt_only_together_with_logprobs() -> None:
    assert completion(logprobs=2).sampling == {"max_tokens": 16, "logprobs": 2}
    assert completion(echo=True).sampling == {"max_tokens": 16}
    both = completion(echo=True, logprobs=2)
    assert both.echo
    assert both.sampling == {"max_tokens": 16, "logprobs": 2, "prompt_logprobs": 2}


@pytest.mark.parametrize(
    ("prompt", "taken"), [("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), ("", ""), ([], [])]
)
def test_a_prompt_is_text_or_ids_or_a_list_of_one(prompt: object, taken: object) -> None:
    assert completion(prompt=prompt).prompt == taken


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert chat(messages=[{"role": "user", "content": parts}]).prompt == HELLO


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": []}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 10**9}, "n"),
        ({"n": 1.5}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": "2"}}, "logit_bias.1"),
        ({"logit_bias": {"01": 1, "1": 1}}, "logit_bias"),
        ({"stop_token_ids": [2.5]}, "stop_token_ids[0]"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"model": 5}, "model"),
    ],
)
def test_what_is_wrong_is_named_as_the_body_spells_it(body: dict[str, Any], field: str) -> None:
    for ask in (completion, chat):
        with pytest.raises(InvalidRequest) as refused:
            ask(**body)
        assert refused.value.field == field
        assert "{{" not in refused.value.reason


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": "a", "messages": HELLO}, "messages"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "logprobs": 99}, "logprobs"),
        ({"prompt": "a", "max_completion_tokens": 5}, "max_completion_tokens"),
        ([], "body"),
        (None, "body"),
        ("text", "body"),
    ],
)
def test_what_is_wrong_with_a_completion_is_named(body: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_body(Endpoint.COMPLETIONS, body)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*HELLO, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": HELLO, "logprobs": 3}, "logprobs"),
        ({"messages": HELLO, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": HELLO, "max_completion_tokens": 1, "max_tokens": 1}, "max_tokens"),
        ({"messages": HELLO, "echo": True}, "echo"),
    ],
)
def test_what_is_wrong_with_a_chat_is_named(body: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_body(Endpoint.CHAT, body)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("ours", "body", "theirs"),
    [
        ("text", {"prompt": "a"}, "prompt"),
        ("token_ids", {"prompt": [1]}, "prompt"),
        ("prompt[3]", {"prompt": [1]}, "prompt[3]"),
        ("chat", {"messages": HELLO}, "messages"),
        ("prompt[0].content", {"messages": HELLO}, "messages[0].content"),
        ("sampling.max_tokens", {"max_tokens": 1}, "max_tokens"),
        ("sampling.max_tokens", {"max_completion_tokens": 1}, "max_completion_tokens"),
        ("sampling.prompt_logprobs", {"prompt": "a"}, "logprobs"),
        ("goal_class", {"prompt": "a"}, "goal_class"),
    ],
)
def test_refusals_of_clients_and_gateways_are_respelled(ours: str, body: dict[str, Any], theirs: str) -> None:
    assert named_as_in(body, InvalidRequest(ours, "why")).field == theirs


def test_every_sampling_parameter_can_be_asked_for() -> None:
    everything = completion(
        **{"max_tokens": 9, "min_tokens": 1, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "n": 2},
        **{"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"1": 1}},
        **{"stop": "x", "stop_token_ids": [1], "ignore_eos": True, "logprobs": 1, "echo": True, "seed": 1},
    )
    assert set(everything.sampling) == set(SamplingParams.__dataclass_fields__)
