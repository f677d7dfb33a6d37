"""Only what was given is sent, and what no gateway would accept is refused by name."""

from typing import Any

import pytest

from twinpool.client.request import build_request
from twinpool.core.errors import InvalidRequest
from twinpool.core.messages import Goal
from twinpool.protos.twinpool.v1 import generation_pb2


def build(prompt: Any = "hi", **sampling: Any) -> generation_pb2.GenerateRequest:
    return build_request(prompt, None, None, None, None, sampling)


def test_only_given_sampling_fields_are_set() -> None:
    sampling = build(temperature=0, stop_token_ids=[3, 4]).sampling
    assert [field.name for field, _ in sampling.ListFields()] == ["temperature", "stop_token_ids"]
    assert not build(seed=None).sampling.HasField("seed")


def test_an_empty_prompt_is_left_to_the_gateway() -> None:
    assert build("").WhichOneof("prompt") == "text"
    assert build([]).WhichOneof("prompt") == "token_ids"


@pytest.mark.parametrize("prompt", [None, 5, b"abc", {1, 2}, range(3), {"role": "user", "content": "x"}])
def test_a_prompt_of_another_type_is_a_type_error(prompt: Any) -> None:
    with pytest.raises(TypeError, match="prompt must be"):
        build(prompt)


@pytest.mark.parametrize(
    ("field", "prompt"),
    [
        ("prompt", "\ud800"),
        ("prompt[1]", [1, -1]),
        ("prompt[0]", [2**32]),
        ("prompt[2]", [1, 2, "3"]),
        ("prompt[0]", [True]),
        ("prompt[0]", [1.0]),
        ("prompt[0]", ["text"]),
        ("prompt[0]", [{"role": "user"}]),
        ("prompt[0]", [{"role": "user", "content": "x", "name": "y"}]),
        ("prompt[0].content", [{"role": "user", "content": 5}]),
        ("prompt[1].role", [{"role": "user", "content": "x"}, {"role": "\udfff", "content": "x"}]),
        ("prompt[1]", [{"role": "user", "content": "x"}, 7]),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_refused_by_position(field: str, prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build(prompt)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "sampling",
    [{"max_tokens": "5"}, {"max_tokens": 2.5}, {"seed": -1}, {"temperature": "hot"}, {"stop": "x"}, {"n": 2},
     {"logit_bias": {5: 1.0}}, {"ignore_eos": 1}],
)  # fmt: skip
def test_a_sampling_value_outside_its_limits_is_refused_by_name(sampling: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build(**sampling)
    assert caught.value.field == f"sampling.{next(iter(sampling))}"


def test_names_and_goals_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="model"):
        build_request("x", 5, None, None, None, {})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"goal\.tpot_s"):
        build_request("x", None, Goal(1.0, float("nan")), None, None, {})
