"""docs/sampling.md says of every parameter what core/sampling.py says."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from twinpool.core.limits import ByToken, Flag, Limit, Real, Several, Text, Whole
from twinpool.core.sampling import LIMITS, SamplingParams

PAGE = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}


def allowed(limit: Limit) -> str:
    match limit:
        case Whole(low, high, may_be_none):
            return f"{'none, or ' if may_be_none else ''}{low} to {high}"
        case Real(low, high, is_open):
            return f"over {low:g}, at most {high:g}" if is_open else f"{low:g} to {high:g}"
        case Flag():
            return "true or false"
        case Several(Text(length), most):
            return f"up to {most} texts of 1 to {length} characters"
        case Several(item, most):
            return f"up to {most} ids, {allowed(item)}"
        case ByToken(value, most):
            return f"up to {most} tokens, {allowed(value)} each"
        case _:
            raise AssertionError(limit)


def default(name: str) -> str:
    value = getattr(SamplingParams(), name)
    return "drawn" if name == "seed" else "none" if value in (None, ()) else str(value).lower()


def test_the_page_has_every_parameter_in_the_order_of_the_code() -> None:
    assert list(ROWS) == [item.name for item in fields(SamplingParams)]


@pytest.mark.parametrize("name", LIMITS)
def test_the_page_tells_default_and_limits(name: str) -> None:
    assert ROWS[name][:2] == [default(name), allowed(LIMITS[name])]
    assert ROWS[name][2]


def test_the_page_uses_no_name_that_is_unknown() -> None:
    known = {item.name for item in fields(SamplingParams)}
    others = {"k", "echo", "choice", "token_ids", "usage.completion_tokens", "InvalidRequest", "None", "SamplingParams"}
    names = set(re.findall(r"`([a-z_.]+|[A-Z]\w+)`", PAGE))
    assert names <= known | others
