"""Sampling parameters refuse, by name and in one line, what no worker should see."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import InvalidRequest
from twinpool.core.sampling import LIMITS, MAX_LOGPROBS, MAX_SEED, MAX_STOP_CHARACTERS, MAX_STOPS, SamplingParams

NAN, INF, HUGE = math.nan, math.inf, 10**4400
NO_NUMBERS: list[Any] = [NAN, INF, -INF, HUGE, -HUGE, "1", b"1", [], {}, (), object(), 1j, True]
NO_SEVERAL: list[Any] = [NAN, HUGE, 1, True, "x", ["x"], {}, None]

BAD_VALUES: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 2**20 + 1, 1.0, None, *NO_NUMBERS],
    "min_tokens": [-1, 257, 2**20 + 1, 1.0, None, *NO_NUMBERS],
    "temperature": [-0.1, 100.1, None, *NO_NUMBERS],
    "top_k": [-1, 2**31, 1.5, None, *NO_NUMBERS],
    "top_p": [0, 0.0, -0.1, 1.1, None, *NO_NUMBERS],
    "min_p": [-0.1, 1.1, None, *NO_NUMBERS],
    "repetition_penalty": [0, -1.0, 0.009, 100.1, None, *NO_NUMBERS],
    "presence_penalty": [-2.1, 2.1, None, *NO_NUMBERS],
    "frequency_penalty": [-2.1, 2.1, None, *NO_NUMBERS],
    "logit_bias": [
        *NO_SEVERAL,
        ((1,),),
        ((1, 1.0), (1, 2.0)),
        ((-1, 1.0),),
        ((2**31, 1.0),),
        ((1.0, 1.0),),
        *[((7, bad),) for bad in (-100.1, 100.1, None, *NO_NUMBERS)],
        tuple((token_id, 1.0) for token_id in range(1025)),
    ],
    "stop": [*NO_SEVERAL, ("",), ("x" * (MAX_STOP_CHARACTERS + 1),), ("\ud800",), (1,), ("x",) * (MAX_STOPS + 1)],
    "stop_token_ids": [*NO_SEVERAL, (-1,), (2**31,), (1.0,), (True,), (NAN,), tuple(range(65))],
    "ignore_eos": [0, 1, None, "no", NAN],
    "logprobs": [-1, MAX_LOGPROBS + 1, 1.0, *NO_NUMBERS],
    "prompt_logprobs": [-1, MAX_LOGPROBS + 1, 1.0, *NO_NUMBERS],
    "n": [0, -1, 129, 1.0, None, *NO_NUMBERS],
    "seed": [-1, MAX_SEED + 1, 1.0, *NO_NUMBERS],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in BAD_VALUES.items()
        for number, value in enumerate(values)
    ],
)
def test_a_value_outside_its_limits_is_refused_by_name_in_one_short_line(name: str, value: Any) -> None:
    params = dataclasses.replace(SamplingParams(), **{name: value})
    with pytest.raises(InvalidRequest) as caught:
        params.check()
    assert caught.value.field == f"sampling.{name}"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_every_parameter_has_a_limit_and_bad_values_above() -> None:
    names = {item.name for item in dataclasses.fields(SamplingParams)}
    assert set(LIMITS) == names == set(BAD_VALUES)


def test_the_defaults_are_within_the_limits() -> None:
    SamplingParams().check()


@given(
    max_tokens=st.integers(256, 2**20),
    min_tokens=st.integers(0, 256),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100)).map(lambda d: tuple(d.items())),
    stop=st.lists(st.text(min_size=1, max_size=MAX_STOP_CHARACTERS), max_size=4).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=64).map(tuple),
    logprobs=st.none() | st.integers(0, MAX_LOGPROBS),
    prompt_logprobs=st.none() | st.integers(0, MAX_LOGPROBS),
    n=st.integers(1, 128),
    seed=st.none() | st.integers(0, MAX_SEED),
)
def test_values_within_their_limits_pass(**values: Any) -> None:
    SamplingParams(**values).check()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(LIMITS)), ANYTHING)
def test_anything_at_all_is_within_its_limit_or_refused_in_words(name: str, value: Any) -> None:
    refusal = LIMITS[name].refusal(value)
    params = dataclasses.replace(SamplingParams(max_tokens=2**20), **{name: value})
    if refusal is None and (name != "max_tokens" or value >= params.min_tokens):
        params.check()
    else:
        with pytest.raises(InvalidRequest, match=f"sampling.{name}"):
            params.check()
