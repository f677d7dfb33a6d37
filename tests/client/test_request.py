"""Only what was given is sent, and what no gateway would accept is refused by name."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.client.request import SAMPLING_NAMES, build_request
from twinpool.core.errors import InvalidRequest
from twinpool.core.messages import Goal
from twinpool.protos.convert import sampling_from_proto
from twinpool.protos.twinpool.v1 import generation_pb2


def build(prompt: Any = "hi", **sampling: Any) -> generation_pb2.GenerateRequest:
    return build_request(prompt, None, None, None, None, sampling)


def test_only_given_sampling_fields_are_set() -> None:
    sampling = build(temperature=0, stop_token_ids=[3, 4]).sampling
    assert [field.name for field, _ in sampling.ListFields()] == ["temperature", "stop_token_ids"]
    assert not build(seed=None).sampling.HasField("seed")


@pytest.mark.parametrize("name", SAMPLING_NAMES)
def test_none_is_as_good_as_not_given(name: str) -> None:
    assert build(**{name: None}) == build()


def test_an_unknown_keyword_is_refused_whatever_its_value() -> None:
    with pytest.raises(TypeError, match="unknown sampling keyword best_of"):
        build(best_of=None)


@pytest.mark.parametrize("stop", [5, b"x", {"a"}, {"a": 1}])
def test_stop_says_that_one_text_will_do(stop: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be a text or a list of texts, not"):
        build(stop=stop)


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
    [{"max_tokens": "5"}, {"max_tokens": 2.5}, {"seed": -1}, {"temperature": "hot"}, {"stop": ""}, {"n": 0},
     {"logit_bias": {5: 101.0}}, {"logit_bias": {"x": 1}}, {"logit_bias": [5]}, {"ignore_eos": 1}, {"stop": 5},
     {"stop": [None]}, {"stop": b"x"}, {"stop_token_ids": 7}, {"stop_token_ids": range(10**12)}, {"logprobs": 21},
     {"min_p": float("nan")}, {"repetition_penalty": 0}, {"min_tokens": 300}, {"seed": 10**5000}],
)  # fmt: skip
def test_a_sampling_value_outside_its_limits_is_refused_by_name(sampling: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build(**sampling)
    assert caught.value.field == f"sampling.{next(iter(sampling))}"


def test_one_stop_string_or_several_and_biases_by_id_are_sent() -> None:
    assert list(build(stop="x").sampling.stop) == ["x"]
    assert list(build(stop=["x", "yz"]).sampling.stop) == ["x", "yz"]
    assert dict(build(logit_bias={7: -100, 2: 0.5}).sampling.logit_bias) == {2: 0.5, 7: -100.0}
    assert build(logprobs=0).sampling.HasField("logprobs")
    assert build_request("x", None, None, None, None, {}, echo=True).echo
    assert build_request("x", None, None, None, None, {}, lossless_kv=True).lossless_kv
    assert not build("x").lossless_kv
    assert build_request("x", None, None, None, None, {}, tenant="acme").tenant == "acme"
    assert build("x").tenant == ""


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.builds(lambda: 10**5000),  # Python does not spell it
        st.sampled_from([-(2**63), 2**64, "\ud800", b"x", float("nan"), float("inf"), -0.0, object(), len]),
        st.floats(),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=2), st.none()), inner, max_size=3),
        st.tuples(inner, inner),
        st.frozensets(st.integers(), max_size=2),
    ),
    max_leaves=5,
)


@settings(max_examples=4 * settings().max_examples)  # over twenty names
@given(
    st.sampled_from(
        [*SAMPLING_NAMES, "echo", "lossless_kv", "tenant", "prompt", "model", "goal", "goal_class", "request_id"]
    ),
    anything,
)
def test_any_value_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    given_values = dict.fromkeys(("prompt", "model", "goal", "goal_class", "request_id"), None) | {"prompt": "x"}
    sampling = {name: value} if name in SAMPLING_NAMES else {}
    flags = {name: value} if name in ("echo", "lossless_kv", "tenant") else {}
    if name in given_values:
        given_values[name] = value
    told = name
    try:
        message = build_request(**given_values, sampling=sampling, **flags)
        sampling_from_proto(message.sampling)  # what is sent is what a gateway takes
    except InvalidRequest as error:
        told = error.field.removeprefix("sampling.")
    except TypeError as error:
        told = str(error)
    assert told.startswith(name)


def test_names_and_goals_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="model"):
        build_request("x", 5, None, None, None, {})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"goal\.tpot_s"):
        build_request("x", None, Goal(1.0, float("nan")), None, None, {})
