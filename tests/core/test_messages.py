"""Goals refuse what is no bound; requests know their own arithmetic."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import InvalidRequest
from twinpool.core.messages import MAX_GOAL_S, Goal, Request, WorkerConfig
from twinpool.core.sampling import SamplingParams


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
