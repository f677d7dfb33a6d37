"""`twinpool generate` against a running gateway: every option arrives, and what comes back is printed."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tests.cluster.local_cluster import make_plan, running
from tests.cluster.modelled_text import expected_answer, text_tokenizer, write_text_model
from twinpool.cluster.cli import app
from twinpool.core.errors import InvalidRequest
from twinpool.core.sampling import LIMITS

pytestmark = pytest.mark.slow
PROMPT = "say: "
SAMPLING: dict[str, Any] = {"max_tokens": 12, "temperature": 0.5, "seed": 3}
OPTIONS = ("--max-tokens", "12", "--temperature", "0.5", "--seed", "3")


def ask(folder: Path, *calls: tuple[str, ...]) -> list[str]:
    """What the command prints, for each set of options, of one cluster."""

    async def scenario() -> list[str]:
        async with running(make_plan(1, 1, model=write_text_model(folder))) as cluster:
            address = ("--address", cluster.addresses[0])
            return [await asyncio.to_thread(printed, *options, *address) for options in calls]

    return asyncio.run(scenario())


def printed(*options: str, prompt: tuple[str, ...] = (PROMPT,), stdin: str | None = None) -> str:
    result = CliRunner().invoke(app, ["generate", *prompt, *options], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_is_asked_for_is_printed(tmp_path: Path) -> None:
    prompt_ids = text_tokenizer().encode(PROMPT)
    whole = expected_answer(prompt_ids, **SAMPLING).text
    stop = whole[9:12]
    one, several, as_json = ask(
        tmp_path,
        (*OPTIONS, "--stop", stop, "--echo"),
        (*OPTIONS, "-n", "2", "--logprobs", "0"),
        (*OPTIONS, "--n", "2", "--stop", stop, "--stop", "never", "--prompt-logprobs", "0", "--json"),
    )
    assert one == PROMPT + expected_answer(prompt_ids, stop=(stop,), **SAMPLING).text + "\n"
    for choice in (0, 1):
        expected = expected_answer(prompt_ids, choice, **SAMPLING)
        assert f"--- {choice}: 12 tokens, length\n{expected.text}" in several
        assert f"answer {choice}" in several
    result = json.loads(as_json)
    wanted = [expected_answer(prompt_ids, choice, stop=(stop, "never"), **SAMPLING) for choice in (0, 1)]
    assert [choice["text"] for choice in result["choices"]] == [answer.text for answer in wanted]
    assert [logprob["token_id"] for logprob in result["prompt_logprobs"]] == prompt_ids[1:]


def test_a_prompt_of_stdin_or_of_ids_is_answered_as_the_argument_is(tmp_path: Path) -> None:
    ids = ",".join(map(str, text_tokenizer().encode(PROMPT)))

    async def scenario() -> list[str]:
        async with running(make_plan(1, 1, model=write_text_model(tmp_path))) as cluster:
            options = (*OPTIONS, "--address", cluster.addresses[0])
            return [
                await asyncio.to_thread(printed, *options),
                await asyncio.to_thread(printed, *options, prompt=("-",), stdin=PROMPT),
                await asyncio.to_thread(printed, *options, prompt=("--token-ids", ids)),
            ]

    argument, stdin, token_ids = asyncio.run(scenario())
    assert argument == stdin == token_ids
    assert len(argument) > 1


def test_a_model_without_a_tokenizer_is_asked_and_answers_in_ids() -> None:
    async def scenario() -> tuple[list[str], list[tuple[int, ...]]]:
        async with running(make_plan()) as cluster:
            address = ("--address", cluster.addresses[0])
            prompt = ("--token-ids", "1, 2,3")
            calls = (OPTIONS, (*OPTIONS, "--echo"), (*OPTIONS, "-n", "2"))
            texts = [await asyncio.to_thread(printed, *options, *address, prompt=prompt) for options in calls]
            wanted = await cluster.client.generate([1, 2, 3], n=2, **SAMPLING)
            return texts, [choice.token_ids for choice in wanted.choices]

    (one, echoed, several), wanted = asyncio.run(scenario())
    first, second = (",".join(map(str, ids)) for ids in wanted)
    assert one == f"{first}\n"
    assert echoed == f"1,2,3,{first}\n"
    assert f"--- 0: 12 tokens, length\n{first}\n" in several
    assert f"--- 1: 12 tokens, length\n{second}\n" in several


def test_it_is_asked_for_a_tenant_and_by_the_goals_of_a_class() -> None:
    async def scenario() -> list[str]:
        async with running(make_plan()) as cluster:
            options = ("--tenant", "acme", "--address", cluster.addresses[0])
            await asyncio.to_thread(printed, "--token-ids", "1", "--goal-class", "batch", *options, prompt=())
            await asyncio.to_thread(refused, "--token-ids", "1", "--goal-class", "none", *options)
            return list(cluster.gateway.dispatcher.waiting.tenants())

    assert asyncio.run(scenario()) == ["acme"]


def test_a_prompt_that_the_gateway_refuses_is_called_the_prompt(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        async with running(make_plan(1, 1, model=write_text_model(tmp_path))) as cluster:
            address = ("--address", cluster.addresses[0])
            calls = [("",), ("-",), ("--token-ids", "999999")]
            return [await asyncio.to_thread(refused, *prompt, *address) for prompt in calls]

    empty, empty_stdin, unknown = asyncio.run(scenario())
    assert empty == empty_stdin == "prompt: is empty"
    assert unknown.startswith("prompt: 999999 is not below")


def refused(*options: str) -> str:
    result = CliRunner().invoke(app, ["generate", *options], input="")
    assert isinstance(result.exception, InvalidRequest)
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "stdin", "why"),
    [
        ((), "", "either a prompt or --token-ids"),
        (("hello", "--token-ids", "1"), "", "either a prompt or --token-ids"),
        (("--token-ids", "1", "--chat"), "", "--chat takes a prompt"),
        (("--token-ids", "1,,2"), "", "must be token ids, as 1,2,3"),
        (("--token-ids", "-1"), "", "must be token ids, as 1,2,3"),
        (("--token-ids", "9" * 5000), "", "must be token ids, as 1,2,3"),
        (("-",), b"ab\xff", "stdin is no UTF-8: byte 3"),
    ],
)
def test_a_prompt_is_given_once_and_can_be_read(arguments: tuple[str, ...], stdin: bytes | str, why: str) -> None:
    result = CliRunner().invoke(app, ["generate", *arguments, "--address", "127.0.0.1:1"], input=stdin)
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--logit-bias", "five"), "ID=BIAS"),
        (("--logit-bias", "5=x"), "ID=BIAS"),
        (("--n", "0"), "sampling.n"),
        (("--stop", ""), "sampling.stop"),
        (("--min-tokens", "200"), "sampling.min_tokens"),
        (("--tenant", "A b"), "lower-case letters"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(options: tuple[str, ...], why: str) -> None:
    result = CliRunner().invoke(app, ["generate", PROMPT, *options, "--address", "127.0.0.1:1"])
    if isinstance(result.exception, SystemExit):
        assert result.exit_code == 2
        assert why in result.output
    else:
        assert isinstance(result.exception, InvalidRequest)  # exit code 2, by main
        assert result.exception.field == why


def test_every_sampling_parameter_is_an_option() -> None:
    known = {option for parameter in get_command(app).commands["generate"].params for option in parameter.opts}
    for name in LIMITS:
        assert f"--{name.replace('_', '-').removesuffix('s' if name == 'stop_token_ids' else '')}" in known
