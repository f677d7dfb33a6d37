"""Bodies of OpenAI responses, field by field."""

import math
from typing import Any

from twinpool.client.results import Choice, GenerationResult, Timings, TokenLogprob, TopLogprob, Usage
from twinpool.cluster.openai_answers import answer_body
from twinpool.cluster.openai_bodies import Endpoint, read_body
from twinpool.core.messages import FinishReason

TIMINGS = Timings("prefill-0", "decode-0", *(0.0,) * 5, 0, 0.0, 0.0, 1, "")


def scored(token_id: int, token: bytes, logprob: float = -0.5, *top: TopLogprob) -> TokenLogprob:
    return TokenLogprob(token_id, logprob, token, top)


def result(*choices: Choice, **more: Any) -> GenerationResult:
    first = choices[0]
    usage = Usage(prompt_tokens=3, completion_tokens=2 * len(choices), cached_tokens=1)
    values = {"text": first.text, "token_ids": first.token_ids, "finish_reason": first.finish_reason} | more
    return GenerationResult(usage=usage, timings=TIMINGS, request_id="abc", choices=choices, **values)


def body_of(endpoint: Endpoint, body: dict[str, Any], answer: GenerationResult) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if endpoint is Endpoint.CHAT else {"prompt": "hi there"}
    return answer_body(read_body(endpoint, prompt | body), answer, model="tiny", created_s=17)


STOPPED = Choice(0, "one", (1, 2), FinishReason.STOP)
CUT = Choice(1, "two", (3, 4), FinishReason.LENGTH)
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def test_a_completion_has_a_choice_for_each_answer() -> None:
    assert body_of(Endpoint.COMPLETIONS, {"n": 2}, result(STOPPED, CUT)) == {
        "id": "cmpl-abc",
        "object": "text_completion",
        "created": 17,
        "model": "tiny",
        "choices": [
            {"index": 0, "text": "one", "logprobs": None, "finish_reason": "stop"},
            {"index": 1, "text": "two", "logprobs": None, "finish_reason": "length"},
        ],
        "usage": USAGE,
    }


def test_a_chat_answers_with_messages() -> None:
    body = body_of(Endpoint.CHAT, {"n": 2}, result(STOPPED, CUT))
    assert (body["id"], body["object"], body["usage"]) == ("chatcmpl-abc", "chat.completion", USAGE)
    assert body["choices"][1] == {
        "index": 1,
        "message": {"role": "assistant", "content": "two", "refusal": None},
        "logprobs": None,
        "finish_reason": "length",
    }


def test_logprobs_of_a_chat_have_bytes_and_alternatives() -> None:
    half = scored(5, b"\xc3", -0.25, TopLogprob(5, -0.25, b"\xc3"), TopLogprob(6, -1.5, b"o"))
    choice = Choice(0, "x", (5,), FinishReason.STOP, (half,))
    (told,) = body_of(Endpoint.CHAT, {"logprobs": True, "top_logprobs": 2}, result(choice))["choices"]
    first, second = told["logprobs"]["content"][0]["top_logprobs"]
    assert first == {"token": "\ufffd", "logprob": -0.25, "bytes": [0xC3]}
    assert second == {"token": "o", "logprob": -1.5, "bytes": [ord("o")]}
    assert told["logprobs"]["content"][0]["token"] == "\ufffd"


def test_logprobs_of_a_completion_are_columns() -> None:
    tokens = (scored(5, b"ab", -0.25, TopLogprob(5, -0.25, b"ab")), scored(6, b"c"), scored(2, b""))
    choice = Choice(0, "abc", (5, 6, 2), FinishReason.STOP, tokens)
    (told,) = body_of(Endpoint.COMPLETIONS, {"logprobs": 1}, result(choice))["choices"]
    assert told["logprobs"] == {
        "tokens": ["ab", "c", "token_id:2"],
        "token_logprobs": [-0.25, -0.5, -0.5],
        "top_logprobs": [{"ab": -0.25}, {}, {}],
        "text_offset": [0, 2, 3],
    }


def test_echo_puts_the_prompts_tokens_first_and_its_first_token_has_no_probability() -> None:
    choice = Choice(0, "hi there!", (9,), FinishReason.STOP, (scored(9, b"!"),))
    answer = result(choice, prompt_logprobs=(scored(8, b" there", -2.0),), prompt_token_ids=(7, 8))
    (told,) = body_of(Endpoint.COMPLETIONS, {"echo": True, "logprobs": 0}, answer)["choices"]
    assert told["text"] == "hi there!"
    assert told["logprobs"]["tokens"] == ["hi", " there", "!"]
    assert told["logprobs"]["token_logprobs"] == [None, -2.0, -0.5]
    assert told["logprobs"]["top_logprobs"] == [None, {}, {}]
    assert told["logprobs"]["text_offset"] == [0, 2, 8]


def test_the_first_token_of_a_prompt_of_ids_is_named_by_its_id() -> None:
    answer = result(
        Choice(0, "", (9,), FinishReason.STOP, (scored(9, b""),)),
        prompt_logprobs=(scored(8, b""),),
        prompt_token_ids=(7, 8),
    )
    (told,) = body_of(Endpoint.COMPLETIONS, {"prompt": [7, 8], "echo": True, "logprobs": 0}, answer)["choices"]
    assert told["logprobs"]["tokens"] == ["token_id:7", "token_id:8", "token_id:9"]


def test_logprobs_that_json_has_no_number_for_are_the_lowest_or_null() -> None:
    tops = (TopLogprob(1, math.nan, b"x"), TopLogprob(2, -math.inf, b"y"), TopLogprob(3, math.inf, b"z"))
    choice = Choice(0, "", (5, 6), FinishReason.STOP, (scored(5, b"a", math.nan, *tops), scored(6, b"b", -math.inf)))
    (columns,) = body_of(Endpoint.COMPLETIONS, {"logprobs": 3}, result(choice))["choices"]
    assert columns["logprobs"]["token_logprobs"] == [None, -9999.0]
    assert columns["logprobs"]["top_logprobs"] == [{"x": None, "y": -9999.0, "z": None}, {}]
    (told,) = body_of(Endpoint.CHAT, {"logprobs": True, "top_logprobs": 3}, result(choice))["choices"]
    first, second = told["logprobs"]["content"]
    assert (first["logprob"], second["logprob"]) == (None, -9999.0)
    assert [top["logprob"] for top in first["top_logprobs"]] == [None, -9999.0, None]


def test_alternatives_of_one_text_are_all_kept_the_best_under_the_text() -> None:
    tops = (TopLogprob(7, -0.1, b"\xc3"), TopLogprob(8, -1.0, b"o"), TopLogprob(9, -2.0, b"\xe2\x82"))
    choice = Choice(0, "", (7,), FinishReason.STOP, (scored(7, b"\xc3", -0.1, *tops, TopLogprob(4, -3.0, b"\xf0")),))
    (told,) = body_of(Endpoint.COMPLETIONS, {"logprobs": 4}, result(choice))["choices"]
    (top,) = told["logprobs"]["top_logprobs"]
    assert list(top.items()) == [("\ufffd", -0.1), ("o", -1.0), ("token_id:9", -2.0), ("token_id:4", -3.0)]
