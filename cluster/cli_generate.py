"""`twinpool generate`: one completion of a running cluster on the terminal, with every sampling parameter as an option.

Knows options and what is printed when; the request itself is the client's.
"""

import sys
from typing import Annotated, Any, NamedTuple

import typer

from twinpool.cluster.cli_options import AddressOption, JsonOption, TenantOption, addresses
from twinpool.cluster.json_text import json_text
from twinpool.core.limits import shown

SamplingOptions = dict[str, Any]
MAX_ID_DIGITS = 10  # no token id has more, and Python turns no text of thousands into a number


def _token_biases(values: list[str]) -> dict[int, float]:
    """``ID=BIAS``, several times."""
    biases = {}
    for value in values:
        token_id, _, bias = value.partition("=")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError:
            raise typer.BadParameter(f"--logit-bias must be ID=BIAS, not {value!r}") from None
    return biases


def _ids(value: str) -> list[int]:
    """``1,2,3``."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) <= MAX_ID_DIGITS for part in parts):
        raise typer.BadParameter(f"--token-ids must be token ids, as 1,2,3, not {shown(value)}")
    return [int(part) for part in parts]


def _content(prompt: str | None, token_ids: str | None, *, chat: bool) -> Any:
    """What the client is asked with: one of the two, and ``-`` is what stdin has."""
    if (prompt is None) == (token_ids is None):
        raise typer.BadParameter("give either a prompt or --token-ids")
    if token_ids is not None:
        if chat:
            raise typer.BadParameter("--chat takes a prompt, not --token-ids")
        return _ids(token_ids)
    text = _stdin() if prompt == "-" else prompt
    return [{"role": "user", "content": text}] if chat else text


def _stdin() -> str:
    try:
        return typer.get_binary_stream("stdin").read().decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"the prompt on stdin is no UTF-8: byte {error.start + 1}") from None


def generate(
    prompt: Annotated[str | None, typer.Argument(help="the text to continue; - reads it from stdin")] = None,
    token_ids: Annotated[
        str | None,
        typer.Option(metavar="ID,ID,...", help="instead of the prompt's text, as for models without a tokenizer"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="most tokens to generate")] = 128,
    min_tokens: Annotated[int | None, typer.Option(help="no end before so many tokens")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 switches it off")] = 0,
    top_p: Annotated[float, typer.Option(help="1 switches it off")] = 1.0,
    min_p: Annotated[float | None, typer.Option(help="0 switches it off")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1 switches it off")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="0 switches it off")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="0 switches it off")] = None,
    logit_bias: Annotated[list[str] | None, typer.Option(metavar="ID=BIAS", help="may be given several times")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends it; may be given several times")] = None,
    stop_token_ids: Annotated[
        list[int] | None, typer.Option("--stop-token-id", help="may be given several times")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on after an end-of-sequence token")] = False,
    logprobs: Annotated[int | None, typer.Option(help="show how probable tokens were, and so many others")] = None,
    prompt_logprobs: Annotated[int | None, typer.Option(help="the same of the prompt's tokens")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="how many answers")] = None,
    seed: Annotated[int | None, typer.Option(help="makes sampling repeatable")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="begin with the prompt's text")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="send the prompt as a user's chat message")] = False,
    goal_class: Annotated[str | None, typer.Option(help="whose goals it has: a name under `goals:`")] = None,
    tenant: TenantOption = None,
    name: Annotated[str | None, typer.Option("--name", help="the cluster's name; by default the only one up")] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stream a completion from a running cluster."""
    given: SamplingOptions = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": _token_biases(logit_bias) if logit_bias else None,
        "stop": stop or None,
        "stop_token_ids": stop_token_ids or None,
        "ignore_eos": ignore_eos or None,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "n": n,
        "seed": seed,
    }
    sampling = {option: value for option, value in given.items() if value is not None}
    content = _content(prompt, token_ids, chat=chat)
    _show(content, addresses(name, address), sampling, _Asker(goal_class, tenant), echo=echo, as_json=as_json)


class _Asker(NamedTuple):
    goal_class: str | None
    tenant: str | None


def _show(
    content: Any, gateways: list[str], sampling: SamplingOptions, asker: _Asker, *, echo: bool, as_json: bool
) -> None:
    """One answer is printed as it comes, several when they are complete, and as ids where the model has no text."""
    from twinpool.client.client import Client
    from twinpool.cluster.show import ids_as_text, print_choices, print_logprobs, result_as_dict

    is_streamed = not as_json and sampling.get("n", 1) == 1
    with (
        Client(gateways, tenant=asker.tenant) as client,
        client.stream(content, goal_class=asker.goal_class, echo=echo, **sampling) as stream,
    ):
        for event in stream:
            if is_streamed:
                sys.stdout.write(event.text)
                sys.stdout.flush()
        result = stream.result
        is_text = any(choice.text for choice in result.choices) or client.models()[0].has_tokenizer
    if as_json:
        typer.echo(json_text(result_as_dict(result)))
        return
    if is_streamed:
        typer.echo("" if is_text else ids_as_text(result, result.choices[0], echo=echo))
    else:
        print_choices(result, as_ids=not is_text, echo=echo)
    print_logprobs(result)
