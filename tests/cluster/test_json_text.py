"""Values that are told as JSON: what it cannot hold becomes null, and nothing else changes."""

import json
import math
from typing import Any, NoReturn

import pytest

from twinpool.cluster.json_text import json_text


def refuse(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def test_numbers_that_json_does_not_have_are_null_wherever_they_are() -> None:
    values = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, {"c": math.nan})], "d": "NaN"}
    assert strictly(json_text(values)) == {"a": None, "b": [1.5, None, [None, {"c": None}]], "d": "NaN"}


@pytest.mark.parametrize("indent", [None, 2])
def test_all_else_is_as_it_was(indent: int | None) -> None:
    values = {"a": [1, 2.5, None, True, "\u00e9\u2028"], "b": {"c": {}}}
    text = json_text(values, indent)
    assert text == json.dumps(values, indent=indent)
    assert text.isascii()


def test_what_is_no_value_of_json_is_refused() -> None:
    with pytest.raises(TypeError):
        json_text({"a": object(), "b": math.nan})
