"""A description counts what is played, exactly."""

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.simulator.trace import TraceRequest
from twinpool.simulator.traces.describe import describe


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=60))
def test_figures_are_those_of_the_requests(rows: list[tuple[float, int, int]]) -> None:
    rows.sort()
    description = describe([TraceRequest(at, prompt, output) for at, prompt, output in rows])
    assert description is not None
    assert description.requests == len(rows)
    assert description.duration_s == rows[-1][0] - rows[0][0]
    for tokens, lengths in (
        (description.prompt_tokens, [r[1] for r in rows]),
        (description.output_tokens, [r[2] for r in rows]),
    ):
        assert tokens.mean == pytest.approx(np.mean(lengths))
        assert tokens.std == pytest.approx(np.std(lengths), abs=1e-9)
        ranked = sorted(lengths)
        expected = [ranked[ceil(len(ranked) * percent / 100) - 1] for percent in (50, 90, 99)]
        assert [tokens.p50, tokens.p90, tokens.p99, tokens.max] == [*expected, ranked[-1]]


def test_rate_and_classes_are_counted() -> None:
    requests = [TraceRequest(float(i), 10, 2, goal_class="chat" if i else "batch") for i in range(5)]
    description = describe(requests)
    assert description is not None
    assert (description.duration_s, description.mean_rate_rps) == (4.0, 1.25)
    assert description.goal_classes == {"batch": 1, "chat": 4}
    assert description.values()["prompt_tokens"]["max"] == 10


def test_requests_at_once_have_no_rate_and_none_have_no_description() -> None:
    at_once = describe([TraceRequest(0.0, 1, 1)] * 3)
    assert at_once is not None
    assert at_once.mean_rate_rps == 0.0
    assert describe([]) is None
