"""Values that are told as JSON: what it cannot hold becomes null, and nothing else changes."""

import json
import math
from typing import Any, NoReturn, Self

import pytest
from typer.testing import CliRunner

from twinpool.client import client as client_module
from twinpool.client.results import Choice, GenerationResult, Timings, TokenLogprob, Usage
from twinpool.cluster.bench.report import print_report
from twinpool.cluster.cli import app
from twinpool.cluster.json_text import json_text
from twinpool.core.messages import FinishReason


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


class FakeClient:
    """Answers without a cluster, and is its own stream; the model's arithmetic came to no number."""

    def __init__(self, addresses: list[str], tenant: str = "") -> None:
        odd = TokenLogprob(5, math.nan, b"x")
        choice = Choice(0, "x", (5,), FinishReason.STOP, (odd,))
        timings = Timings("p", "d", *(0.0,) * 5, 0, 0.0, 0.0, 1, addresses[0])
        self.result = GenerationResult(
            "x", (5,), FinishReason.STOP, Usage(1, 1, 0), timings, "r", choices=(choice,), prompt_logprobs=(odd,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(())

    def stream(self, prompt: str, *, echo: bool, **sampling: Any) -> Self:
        assert (prompt, echo, sampling["logprobs"]) == ("hello", False, 0)
        return self


def test_an_answer_without_numbers_is_printed_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "Client", FakeClient)
    printed = CliRunner().invoke(
        app, ["generate", "hello", "--logprobs", "0", "--json", "--address", "127.0.0.1:1"], catch_exceptions=False
    )
    values = strictly(printed.stdout)
    assert values["choices"][0]["logprobs"][0]["logprob"] is None
    assert values["prompt_logprobs"][0]["token"] == "x"


def test_a_benchmark_without_a_number_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_report("bench x", [{"ratio": math.nan, "runs": 2}], ["ratio"], as_json=True)
    assert strictly(capsys.readouterr().out)["results"] == [{"ratio": None, "runs": 2}]
