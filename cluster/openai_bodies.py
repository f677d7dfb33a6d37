"""From the body of an OpenAI request to what a client of ours is asked: prompt, model and sampling parameters.

Pure. Knows the names of two endpoints' fields; the limits of their values are those of core/sampling.py, and what a
model can take is the gateway's to say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from twinpool.core.called import as_called
from twinpool.core.errors import InvalidRequest
from twinpool.core.limits import shown
from twinpool.core.sampling import MAX_LOGPROBS, SamplingParams

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own, of /v1/completions alone
MAX_ID_DIGITS = 10  # no token id has more, and Python turns no text of thousands into a number

Prompt = str | list[int] | list[dict[str, str]]


class Endpoint(StrEnum):
    """What a request asks for, by its path."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, checked. ``sampling`` has only what the body gave, by the names of SamplingParams."""

    endpoint: Endpoint
    model: str | None
    prompt: Prompt
    sampling: Mapping[str, Any]
    echo: bool = False
    stream: bool = False


def read_body(endpoint: Endpoint, body: object) -> Ask:
    """Return what a decoded body asks for.

    Raises:
        InvalidRequest: a field is missing, unknown, or outside its limits; it is named as the body spells it.
    """
    kind: type[_Body] = _ChatBody if endpoint is Endpoint.CHAT else _CompletionBody
    try:
        checked = kind.model_validate(body)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False)[0]) from None
    ask = checked.ask()
    try:
        SamplingParams(**ask.sampling).check()
    except InvalidRequest as error:
        raise named_as_in(body, error) from None
    return ask


def named_as_in(body: object, error: InvalidRequest) -> InvalidRequest:
    """The same refusal, with its field spelled as the body spells it."""
    given = body if isinstance(body, Mapping) else {}
    field = as_called(error.field.removeprefix("sampling."))
    if _PROMPT.match(field):
        field = field.replace("prompt", "messages", 1) if "messages" in given else field
    elif field == "prompt_logprobs":
        field = "logprobs"
    for ours, theirs in (("max_tokens", "max_completion_tokens"), ("logprobs", "top_logprobs")):
        if field == ours and given.get(theirs) is not None:
            field = theirs
    return InvalidRequest(field, error.reason)


_PROMPT = re.compile(r"prompt(?=$|\[)")  # what a client calls it


def _explained(item: ErrorDetails) -> InvalidRequest:
    path = item["loc"]
    field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".") or "body"
    match item["type"]:
        case "extra_forbidden":
            return InvalidRequest(field, "is not supported")
        case "missing":
            return InvalidRequest(field, "is missing")
        case "ours":
            return InvalidRequest(field, item["msg"])
        case "model_type":
            return InvalidRequest(field, f"must be an object, not {shown(item['input'])}")
        case "too_short":
            return InvalidRequest(field, "is empty")
    text = item["msg"].replace("Input should be", "must be")
    return InvalidRequest(field, f"{text}, not {shown(item['input'])}")


def _refuse(text: str) -> PydanticCustomError:
    return PydanticCustomError("ours", "{what}", {"what": text})


def _one_prompt(value: object) -> object:
    """A list with one prompt in it is that prompt."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise _refuse(f"has {len(value)} prompts; give each a request of its own")
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    raise _refuse(f"must be text or a list of token ids, not {shown(value)}")


def _several(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _text_of(value: object) -> object:
    """Text in parts is that text."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text":
            raise _refuse(f"has a part that is no text: {shown(part)}")
        if not isinstance(part["text"], str):
            raise _refuse(f"has a part whose text is {shown(part['text'])}")
    return "".join(part["text"] for part in value)


def _by_token_id(value: object) -> object:
    """JSON has no numbers as keys: ``{"50256": -100}``."""
    if not isinstance(value, dict):
        return value
    bad = next((key for key in value if not _is_token_id(key)), None)
    if bad is not None:
        raise _refuse(f"has the key {shown(bad)}, which is no token id")
    return value


def _is_token_id(key: object) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= MAX_ID_DIGITS


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Message(_Model):
    role: str
    content: Annotated[str, BeforeValidator(_text_of)]


class _Body(_Model):
    """The fields that both endpoints have. None is what leaving a field out is."""

    model: str | None = None
    stream: bool | None = None
    user: str | None = None  # who asks, for OpenAI's own records
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: Annotated[list[str], BeforeValidator(_several)] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_by_token_id)] | None = None
    # Not OpenAI's, but spelled as other servers spell them.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None

    def ask(self) -> Ask:
        raise NotImplementedError

    def _sampling(self, **more: int | None) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in _SAME_NAME} | more
        chosen = {name: value for name, value in given.items() if value is not None}
        for name in ("stop", "stop_token_ids"):
            if name in chosen:
                chosen[name] = tuple(chosen[name])
        if self.logit_bias is not None:
            chosen["logit_bias"] = tuple(sorted((int(key), bias) for key, bias in self.logit_bias.items()))
        if chosen.get("top_k") == -1:  # how other servers spell "off"
            chosen["top_k"] = 0
        return chosen


_SAME_NAME = (
    *("max_tokens", "temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty"),
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"),
)


class _CompletionBody(_Body):
    prompt: Annotated[str | list[int], BeforeValidator(_one_prompt)]
    logprobs: int | None = None
    echo: bool | None = None

    def ask(self) -> Ask:
        max_tokens = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        echo = bool(self.echo)
        sampling = self._sampling(
            max_tokens=max_tokens, logprobs=self.logprobs, prompt_logprobs=self.logprobs if echo else None
        )
        return Ask(Endpoint.COMPLETIONS, self.model, self.prompt, sampling, echo, bool(self.stream))


class _ChatBody(_Body):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def ask(self) -> Ask:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequest("max_tokens", "is another name of max_completion_tokens; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs", f"(0 to {MAX_LOGPROBS}) needs logprobs: true")
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        sampling = self._sampling(max_tokens=max_tokens, logprobs=(self.top_logprobs or 0) if self.logprobs else None)
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        return Ask(Endpoint.CHAT, self.model, messages, sampling, stream=bool(self.stream))
