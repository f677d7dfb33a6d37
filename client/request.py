"""Builds the message of one generate call, refusing at once what no gateway would accept.

Knows no transport. What only the cluster can judge (an empty prompt, a prompt too long, an unknown model) is left
to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from twinpool.core.errors import InvalidRequest
from twinpool.core.limits import Name, shown
from twinpool.core.messages import Goal
from twinpool.core.sampling import SamplingParams
from twinpool.protos.convert import goal_to_proto, sampling_to_proto
from twinpool.protos.twinpool.v1 import generation_pb2

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]

SAMPLING_NAMES = tuple(item.name for item in fields(SamplingParams))
MAX_TOKEN_ID = 2**32 - 1


def build_request(
    prompt: Prompt,
    model: str | None,
    goal: Goal | None,
    goal_class: str | None,
    request_id: str | None,
    sampling: Mapping[str, Any],
    echo: bool = False,
    lossless_kv: bool = False,
    tenant: str | None = None,
) -> generation_pb2.GenerateRequest:
    """Return the message; only the sampling fields that are given are set in it, and None is as good as not given.

    Raises:
        TypeError: an unknown sampling keyword, or a prompt that is neither text, token ids nor chat messages.
        InvalidRequest: a value outside its limits, or of another type.
    """
    for name, value in (("echo", echo), ("lossless_kv", lossless_kv)):
        if not isinstance(value, bool):
            raise InvalidRequest(name, f"must be true or false, not {shown(value)}")
    message = generation_pb2.GenerateRequest(
        request_id=_text("request_id", request_id or ""),
        model=_text("model", model or ""),
        goal_class=_text("goal_class", goal_class or ""),
        sampling=_sampling(sampling),
        echo=echo,
        lossless_kv=lossless_kv,
        tenant=check_tenant(tenant),
    )
    if goal is not None:
        if not isinstance(goal, Goal):
            raise TypeError(f"goal must be a Goal, for example Goal(ttft_s=1, tpot_s=0.05), not {shown(goal)}")
        goal.check()
        message.goal.CopyFrom(goal_to_proto(goal))
    _set_prompt(message, prompt)
    return message


def check_tenant(tenant: str | None) -> str:
    """The name as it is sent. Raises InvalidRequest for what is none."""
    why = None if tenant is None else Name().refusal(tenant)
    if why is not None:
        raise InvalidRequest("tenant", why)
    return tenant or ""


def _set_prompt(message: generation_pb2.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        message.text = _text("prompt", prompt)
    elif not isinstance(prompt, list | tuple):
        raise TypeError(f"prompt must be a str, a list of token ids or a list of chat messages, not {type(prompt)}")
    elif prompt and isinstance(prompt[0], Mapping):
        message.chat.CopyFrom(_chat(prompt))
    else:
        message.token_ids.CopyFrom(_token_ids(prompt))


def _token_ids(prompt: Sequence[Any]) -> generation_pb2.TokenIds:
    for position, token_id in enumerate(prompt):
        if type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise InvalidRequest(f"prompt[{position}]", f"must be a token id, not {shown(token_id)}")
    return generation_pb2.TokenIds(ids=prompt)


def _chat(prompt: Sequence[Any]) -> generation_pb2.ChatMessages:
    chat = generation_pb2.ChatMessages()
    for position, item in enumerate(prompt):
        if not isinstance(item, Mapping) or set(item) != {"role", "content"}:
            raise InvalidRequest(f"prompt[{position}]", f"must be a role and a content, not {shown(item)}")
        role, content = (_text(f"prompt[{position}].{name}", item[name]) for name in ("role", "content"))
        chat.messages.add(role=role, content=content)
    return chat


def _sampling(given: Mapping[str, Any]) -> generation_pb2.SamplingParams:
    unknown = sorted(set(given) - set(SAMPLING_NAMES))
    if unknown:
        raise TypeError(f"unknown sampling keyword {', '.join(unknown)}; known: {', '.join(sorted(SAMPLING_NAMES))}")
    given = {name: _as_tuples(name, value) for name, value in given.items() if value is not None}
    if not isinstance(given.get("stop", ()), tuple):
        raise InvalidRequest("sampling.stop", f"must be a text or a list of texts, not {shown(given['stop'])}")
    params = SamplingParams(**given)
    params.check()
    message = sampling_to_proto(params)
    for name in set(SAMPLING_NAMES) - set(given):
        message.ClearField(name)  # the gateway has the defaults
    return message


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(field, f"must be text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, f"is no valid Unicode text: {error.reason}") from None
    return value


def _as_tuples(name: str, value: Any) -> Any:
    """Lists and dicts as the tuples that SamplingParams holds; anything else as it is, for its limit to judge."""
    if name == "stop" and isinstance(value, str):
        return (value,)
    if name == "logit_bias" and isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value
