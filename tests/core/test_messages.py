"""Sampling parameters and goals refuse what no worker should see; requests know their own arithmetic."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import InvalidRequest
from twinpool.core.messages import MAX_GOAL_S, MAX_SEED, MAX_STOP_TOKEN_IDS, Goal, Request, SamplingParams, WorkerConfig

BAD_VALUES = [
    ("max_tokens", [0, -1, 2**20 + 1, 1.0, True, None, "1", math.nan]),
    ("temperature", [-0.1, 100.1, math.nan, math.inf, -math.inf, True, None, "1"]),
    ("top_k", [-1, 2**31, 1.5, True, None]),
    ("top_p", [0, 0.0, -0.1, 1.1, math.nan, True, None]),
    ("seed", [-1, MAX_SEED + 1, 1.0, True, "7"]),
    ("ignore_eos", [0, 1, None, "no"]),
    ("stop_token_ids", [(-1,), (2**31,), (1.0,), (True,), tuple(range(MAX_STOP_TOKEN_IDS + 1))]),
    ("min_tokens", [1]),
    ("min_p", [0.1]),
    ("repetition_penalty", [1.1]),
    ("presence_penalty", [0.1]),
    ("frequency_penalty", [0.1]),
    ("logit_bias", [((1, 1.0),)]),
    ("stop", [("x",)]),
    ("logprobs", [1]),
    ("n", [2]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_VALUES for value in values])
def test_a_sampling_value_outside_its_limits_is_refused_by_name(name: str, value: object):
    params = dataclasses.replace(SamplingParams(), **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest) as caught:
        params.check()
    assert caught.value.field == f"sampling.{name}"


def test_every_sampling_parameter_has_a_bad_value_above():
    assert {name for name, _ in BAD_VALUES} == {item.name for item in dataclasses.fields(SamplingParams)}


@given(
    max_tokens=st.integers(1, 2**20),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.none() | st.integers(0, MAX_SEED),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=MAX_STOP_TOKEN_IDS).map(tuple),
)
def test_sampling_values_within_their_limits_pass(**values: object):
    SamplingParams(**values).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, MAX_GOAL_S + 1, "1", None])
@pytest.mark.parametrize("name", ["ttft_s", "tpot_s"])
def test_a_goal_that_is_no_bound_is_refused_by_name(name: str, value: object):
    goal = dataclasses.replace(Goal(1.0, 1.0), **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest) as caught:
        goal.check()
    assert caught.value.field == f"goal.{name}"


@given(prompt=st.integers(1, 50), emitted=st.integers(0, 20), more=st.integers(1, 30))
def test_a_continuation_ends_where_the_first_attempt_would_have(prompt: int, emitted: int, more: int):
    first = Request("r", 1, (0,) * prompt, prompt, SamplingParams(max_tokens=emitted + more), Goal(1, 1))
    later = dataclasses.replace(first, epoch=2, token_ids=(0,) * (prompt + emitted))
    assert later.num_emitted == emitted
    assert later.max_new_tokens == more
    assert later.num_emitted + later.max_new_tokens == first.max_new_tokens
    assert later.peak_tokens == first.peak_tokens == prompt + emitted + more - 1


def test_the_cluster_secret_is_never_shown():
    config = WorkerConfig("w", "prefill", "m", 1, 1, 1, cluster_secret="hush")  # type: ignore[arg-type]
    assert "hush" not in repr(config)
