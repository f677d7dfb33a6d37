"""From a whole answer to the body of an OpenAI response: ``text_completion`` and ``chat.completion``.

Pure: when a body was made is an argument. Knows no transport, and of a request only what shapes its answer.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from twinpool.client.results import Choice, GenerationResult, TokenLogprob, TopLogprob
from twinpool.cluster.openai_bodies import Ask, Endpoint

Body = dict[str, Any]

IMPOSSIBLE = -9999.0  # OpenAI's own for a token of no probability: JSON has no infinity


def answer_body(ask: Ask, result: GenerationResult, *, model: str, created_s: int) -> Body:
    """Return the response's body, of the kind that the request's endpoint has.

    Args:
        ask: the request that was answered.
        result: all its choices; asked for with ``echo`` where the request has it.
        model: the name of the model that answered.
        created_s: seconds since 1970.
    """
    if ask.endpoint is Endpoint.CHAT:
        kind, name, choices = "chat.completion", "chatcmpl", [_chat_choice(choice) for choice in result.choices]
    else:
        kind, name = "text_completion", "cmpl"
        choices = [_completion_choice(ask, result, choice) for choice in result.choices]
    head = {"id": f"{name}-{result.request_id}", "object": kind, "created": created_s, "model": model}
    return head | {"choices": choices, "usage": usage_body(result)}


def usage_body(result: GenerationResult) -> Body:
    """Return the tokens of a request, of all its choices together."""
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _chat_choice(choice: Choice) -> Body:
    content = [
        _chat_token(token) | {"top_logprobs": [_chat_token(top) for top in token.top]} for token in choice.logprobs
    ]
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": {"content": content, "refusal": None} if content else None,
        "finish_reason": str(choice.finish_reason),
    }


def _chat_token(token: TokenLogprob | TopLogprob) -> Body:
    return {"token": _spelled(token), "logprob": _finite(token.logprob), "bytes": list(token.token)}


def _completion_choice(ask: Ask, result: GenerationResult, choice: Choice) -> Body:
    tokens: Sequence[TokenLogprob] = choice.logprobs
    first: list[str] = []
    if ask.echo:
        tokens = (*result.prompt_logprobs, *tokens)
        first = [_first_token(ask, result)]
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": _completion_logprobs(first, tokens) if tokens else None,
        "finish_reason": str(choice.finish_reason),
    }


def _completion_logprobs(first: list[str], tokens: Sequence[TokenLogprob]) -> Body:
    """``first``: the prompt's first token, which follows nothing and so has no probability; empty without echo."""
    unknown = [None] * len(first)
    texts = [*first, *(_spelled(token) for token in tokens)]
    return {
        "tokens": texts,
        "token_logprobs": [*unknown, *(_finite(token.logprob) for token in tokens)],
        "top_logprobs": [*unknown, *(_alternatives(token.top) for token in tokens)],
        "text_offset": list(accumulate((len(text) for text in texts[:-1]), initial=0)),
    }


def _alternatives(top: Sequence[TopLogprob]) -> dict[str, float | None]:
    """By text, best first; where several have one text, as parts of characters do, all but the best by their ids."""
    named: dict[str, float | None] = {}
    for other in top:
        text = _spelled(other)
        named[_named_by_id(other.token_id) if text in named else text] = _finite(other.logprob)
    return named


def _finite(logprob: float) -> float | None:
    """What JSON can hold; None where the model's arithmetic came to no number."""
    if logprob == -math.inf:
        return IMPOSSIBLE
    return logprob if math.isfinite(logprob) else None


def _first_token(ask: Ask, result: GenerationResult) -> str:
    """The gateway scores all of a prompt's tokens but the first, so its text is what the others leave of the prompt."""
    if not isinstance(ask.prompt, str):
        return "".join(map(_named_by_id, result.prompt_token_ids[:1]))
    raw = ask.prompt.encode()
    others = sum(len(token.token) for token in result.prompt_logprobs)
    return raw[: max(0, len(raw) - others)].decode(errors="replace")


def _spelled(token: TokenLogprob | TopLogprob) -> str:
    """A token's text; one without bytes (the end of a text, or a model without a tokenizer) is named by its id."""
    return token.token.decode(errors="replace") if token.token else _named_by_id(token.token_id)


def _named_by_id(token_id: int) -> str:
    return f"token_id:{token_id}"
