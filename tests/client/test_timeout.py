"""Limits are finite and positive."""

import math
from typing import Any

import pytest

from twinpool.client.timeout import Timeout, choose_timeout


@pytest.mark.parametrize("name", ["connect_s", "first_token_s", "between_tokens_s", "total_s"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, None, "5"])
def test_a_limit_that_is_not_finite_and_positive_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Timeout(**{name: value})  # type: ignore[arg-type]


def test_the_defaults_are_finite() -> None:
    assert math.isfinite(Timeout().answer_s + Timeout().total_s)


@pytest.mark.parametrize("given", [5.0, "5", {"total_s": 5}])
def test_a_timeout_that_is_none_is_refused_with_an_example(given: Any) -> None:
    with pytest.raises(TypeError, match=r"Timeout\(total_s=5\)"):
        choose_timeout(given, Timeout())
