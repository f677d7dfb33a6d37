"""What `twinpool generate` prints: for programs every value as JSON, for people each answer and how probable it was."""

import json

import pytest

from twinpool.client.results import Choice, GenerationResult, Timings, TokenLogprob, TopLogprob, Usage
from twinpool.cluster.show import print_choices, print_logprobs, result_as_dict
from twinpool.core.messages import FinishReason

TIMINGS = Timings("p", "d", 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0.0, 1, "test")
HALF = TokenLogprob(7, -0.5, b"\xc3", (TopLogprob(7, -0.5, b"\xc3"), TopLogprob(9, -1.25, b"[b]")))
UNSEEN = TokenLogprob(1, -3.0, b"")


def result() -> GenerationResult:
    choices = (
        Choice(0, "[red]one", (7, 1), FinishReason.STOP, (HALF, UNSEEN)),
        Choice(1, "two", (5,), FinishReason.LENGTH),
    )
    first = choices[0]
    return GenerationResult(
        first.text, first.token_ids, first.finish_reason, Usage(2, 3, 0), TIMINGS, "r", first.logprobs, choices,
        (4, 5), (UNSEEN,),
    )  # fmt: skip


def test_a_result_is_one_json_object_with_bytes_as_text_and_numbers() -> None:
    values = json.loads(json.dumps(result_as_dict(result())))
    assert (values["text"], values["token_ids"], values["finish_reason"]) == ("[red]one", [7, 1], "stop")
    assert values["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0}
    assert [choice["text"] for choice in values["choices"]] == ["[red]one", "two"]
    first, unseen = values["logprobs"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("\ufffd", [0xC3], -0.5)
    assert first["top"][1] == {"token_id": 9, "logprob": -1.25, "token": "[b]", "bytes": [91, 98, 93]}
    assert (unseen["token"], unseen["bytes"]) == ("", [])
    assert values["prompt_logprobs"][0]["token_id"] == 1


def test_every_answer_is_printed_under_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_choices(result())
    assert capsys.readouterr().out == "--- 0: 2 tokens, stop\n[red]one\n--- 1: 1 tokens, length\ntwo\n"


def test_logprobs_are_printed_where_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    print_logprobs(result())
    out = capsys.readouterr().out
    assert "prompt" in out
    assert "answer 0" in out
    assert "answer 1" not in out
    assert "'[b]' -1.250" in out
    assert "<1>" in out
