"""Options are checked before any file is opened, and refused by the name that they have on a command line."""

from typing import Any

import pytest

from twinpool.core.errors import SpecError
from twinpool.simulator.traces.arrivals import Process, Step
from twinpool.simulator.traces.options import Format, TraceOptions, parse_goal_classes, parse_steps, trace_options


def test_plain_values_become_options() -> None:
    options = trace_options(
        format="azure", rate_rps=None, scale=0.5, arrivals="gamma", cv=2.0, step="10@0, 40@60", goal_class="a=3,b"
    )
    assert options == TraceOptions(
        format=Format.AZURE,
        scale=0.5,
        arrivals=Process.GAMMA,
        cv=2.0,
        steps=(Step(10.0, 0.0), Step(40.0, 60.0)),
        goal_classes=(("a", 3.0), ("b", 1.0)),
    )
    assert trace_options() == TraceOptions()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"format": "csv"}, "--format: 'csv' is not one of: azure, mooncake, burstgpt, lengths, request-log"),
        ({"arrivals": "weibull"}, "--arrivals: 'weibull' is not one of: poisson, gamma, constant"),
        ({"rate_rps": 0.0}, "--rate: must be a number over 0"),
        ({"rate_rps": float("nan")}, "--rate: must be a number over 0"),
        ({"scale": -1.0}, "--scale: must be"),
        ({"duration_s": 0.0}, "--duration: must be"),
        ({"requests": 0}, "--requests: must be a whole number from 1"),
        ({"cv": 0.0}, "--cv: must be"),
        ({"seed": -1}, "--seed: must be"),
        ({"max_tokens": 2**25}, "--max-tokens: must be"),
        ({"rate_rps": 2.0, "scale": 2.0}, "--scale: cannot go with --rate"),
        ({"rate_rps": 2.0, "step": "1@0"}, "--step: cannot go with --rate"),
        ({"repeat": True}, "--repeat: needs --duration or --requests"),
    ],
)
def test_wrong_options_are_refused_by_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        trace_options(**values)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("text", ["10", "10@", "@5", "a@0", "10@0,20@0", "10@5,20@1", "-1@0", "nan@0", "0@0", "1@inf"])
def test_steps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--step: "):
        parse_steps(text)


@pytest.mark.parametrize("text", ["a=0", "a=x", "a=-1", "=1", "a,a", "a=inf"])
def test_goal_classes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--goal-class: "):
        parse_goal_classes(text)
