"""Renders chat messages by a model's own Jinja template, as Hugging Face does, in a sandbox.

Knows messages and text: no tokens. The template comes with the model, so it may loop and fail, but reach nothing.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from twinpool.core.errors import InvalidRequest, SpecError

MAX_RENDERED_CHARS = 4 * 2**20

# What a template's own code can raise once it runs; the sandbox's refusals are TemplateErrors.
_TEMPLATE_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """One compiled template, and the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        """Compile ``source``; ``special_tokens`` are variables such as ``bos_token``.

        Raises:
            SpecError: not a template; names ``where`` and the line.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise SpecError(f"{where}: chat template, line {error.lineno}: {error.message}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the assistant's next message.

        Raises:
            InvalidRequest: no messages, one that is not a role and a content, one that the template refuses, or a text
                over MAX_RENDERED_CHARS.
        """
        _check_messages(messages)
        context = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        }
        pieces, num_chars = [], 0
        try:
            for piece in self._template.generate(context):
                pieces.append(piece)
                num_chars += len(piece)
                if num_chars > MAX_RENDERED_CHARS:
                    raise InvalidRequest("chat", f"renders to over {MAX_RENDERED_CHARS} characters")
        except _TEMPLATE_FAILURES as error:
            raise InvalidRequest("chat", f"the model's chat template refuses it: {error or repr(error)}") from error
        return "".join(pieces)


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    if not messages:
        raise InvalidRequest("chat", "has no messages")
    for index, message in enumerate(messages):
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise InvalidRequest(f"chat[{index}].{name}", "must be a string")


class _GenerationTag(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
