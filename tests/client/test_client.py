"""What a user of either client sees: answers, errors, other gateways, cancellation and limits."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinpool.client.client import AsyncClient, Client
from twinpool.client.errors import ConnectionFailed
from twinpool.client.results import GenerationResult, StreamEvent
from twinpool.client.timeout import Timeout
from twinpool.core import errors
from twinpool.core.messages import FinishReason, Goal

Asked = tuple[list[StreamEvent], GenerationResult]
EVENTS = [StreamEvent("He", (10,), 0), StreamEvent("", (11, 12), 1), StreamEvent("llo", (13,), 3)]


def ask_sync(addresses: Any, prompt: Any, *, timeout: Timeout | None = None, **options: Any) -> Asked:
    with Client(addresses, timeout=timeout) as client, client.stream(prompt, **options) as stream:
        return list(stream), stream.result


def ask_async(addresses: Any, prompt: Any, *, timeout: Timeout | None = None, **options: Any) -> Asked:
    async def ask() -> Asked:
        async with (
            AsyncClient(addresses, timeout=timeout) as client,
            client.stream(prompt, **options) as stream,
        ):
            return [event async for event in stream], stream.result

    return asyncio.run(ask())


def call_sync(addresses: Any, method: str, *arguments: Any) -> Any:
    with Client(addresses) as client:
        return getattr(client, method)(*arguments)


def call_async(addresses: Any, method: str, *arguments: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(addresses) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(call())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])
both_calls = pytest.mark.parametrize("call", [call_sync, call_async], ids=["sync", "async"])


@both
def test_a_stream_yields_each_message_and_then_has_the_whole_result(gateway: Any, ask: Callable[..., Asked]) -> None:
    events, result = ask(gateway.address, "hello")
    assert events == EVENTS
    assert (result.text, result.token_ids, result.request_id) == ("Hello", (10, 11, 12, 13), "g1")
    assert result.finish_reason is FinishReason.STOP
    assert (result.usage.prompt_tokens, result.usage.completion_tokens, result.usage.cached_tokens) == (5, 4, 2)
    assert (result.timings.prefill_worker, result.timings.decode_worker, result.timings.kv_bytes) == ("p0", "d0", 9)


@both_calls
def test_generate_returns_the_result_of_the_stream(gateway: Any, call: Callable[..., Any]) -> None:
    assert call(gateway.address, "generate", "hello").text == "Hello"


@both
def test_several_answers_come_as_choices_of_one_result(gateway: Any, ask: Callable[..., Asked]) -> None:
    events, result = ask(gateway.address, "hello", n=2, echo=True, stop="x")
    for choice in (0, 1):
        mine = [event for event in events if event.choice == choice]
        assert [(event.text, event.index) for event in mine] == [(event.text, event.index) for event in EVENTS]
    assert [(choice.index, choice.text) for choice in result.choices] == [(0, "Hello"), (1, "Hello")]
    assert result.usage.completion_tokens == 4
    (request,) = gateway.requests
    assert (request.echo, request.sampling.n, list(request.sampling.stop)) == (True, 2, ["x"])


@both
def test_what_is_asked_for_arrives_at_the_gateway(gateway: Any, ask: Callable[..., Asked]) -> None:
    goal = Goal(ttft_s=0.5, tpot_s=0.05)
    ask(gateway.address, "hi", model="tiny", goal=goal, goal_class="batch", request_id="mine", seed=7, max_tokens=3)
    ask(gateway.address, [1, 2, 3])
    ask(gateway.address, [{"role": "user", "content": "hi"}])
    text, ids, chat = gateway.requests
    assert (text.text, text.model, text.goal_class, text.request_id) == ("hi", "tiny", "batch", "mine")
    assert (text.goal.ttft_s, text.sampling.seed, text.sampling.max_tokens) == (0.5, 7, 3)
    assert not text.sampling.HasField("temperature")
    assert list(ids.token_ids.ids) == [1, 2, 3]
    assert [(message.role, message.content) for message in chat.chat.messages] == [("user", "hi")]


@both
def test_wrong_arguments_are_refused_before_anything_is_sent(gateway: Any, ask: Callable[..., Asked]) -> None:
    with pytest.raises(TypeError, match=r"max_token; known: .*max_tokens"):
        ask(gateway.address, "hello", max_token=3)
    with pytest.raises(errors.InvalidRequest) as caught:
        ask(gateway.address, "hello", temperature=float("nan"))
    assert caught.value.field == "sampling.temperature"
    assert gateway.requests == []


@both
@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("sampling.n", "is not supported"),
        errors.ModelNotFound("gpt", ("tiny", "small")),
        errors.Unauthenticated("no token"),
        errors.Forbidden("not yours"),
        errors.Overloaded("the queue is full", 2.5),
        errors.DeadlineExceeded("queued"),
        errors.Cancelled("cancelled by its caller"),
        errors.NoWorkers("decode", 3.0),
        errors.AttemptsExhausted("tried 3 times"),
        errors.Corrupted("a digest failed twice"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_the_class_and_with_the_values_it_left_with(
    gateway: Any, ask: Callable[..., Asked], error: errors.TwinpoolError
) -> None:
    gateway.error = error
    with pytest.raises(type(error)) as caught:
        ask(gateway.address, "hello")
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


@both
def test_an_internal_error_arrives_as_an_incident_only(gateway: Any, ask: Callable[..., Asked]) -> None:
    gateway.error = errors.Internal("the pool at 10.0.0.7 is at -1")
    with pytest.raises(errors.Internal, match="incident") as caught:
        ask(gateway.address, "hello")
    assert "10.0.0.7" not in str(caught.value)


@both
def test_an_error_with_a_huge_text_still_arrives(gateway: Any, ask: Callable[..., Asked]) -> None:
    gateway.error = errors.ModelNotFound("\N{PILE OF POO}" * 100_000, ("tiny",))
    with pytest.raises(errors.ModelNotFound):
        ask(gateway.address, "hello")


@both
def test_a_prompt_over_the_message_limit_is_an_invalid_request(gateway: Any, ask: Callable[..., Asked]) -> None:
    with pytest.raises(errors.InvalidRequest, match="larger than max"):
        ask(gateway.address, "x" * (17 * 2**20))


@both
@pytest.mark.parametrize("prompt", ["gap", "repeat", "no end", "past the end", "unknown reason"])
def test_a_broken_promise_of_the_gateway_is_an_internal_error(
    gateway: Any, ask: Callable[..., Asked], prompt: str
) -> None:
    with pytest.raises(errors.Internal):
        ask(gateway.address, prompt)


@both
def test_a_refused_connection_names_the_address(free_address: str, ask: Callable[..., Asked]) -> None:
    with pytest.raises(ConnectionFailed, match=free_address) as caught:
        ask(free_address, "hello")
    assert caught.value.address == free_address


@both
def test_the_next_address_answers_when_the_first_is_unavailable(
    make_gateway: Callable[[], Any], free_address: str, ask: Callable[..., Asked]
) -> None:
    empty, serving = make_gateway(), make_gateway()
    empty.error = errors.NoWorkers("decode")
    events, _ = ask([free_address, empty.address, serving.address], "hello")
    assert events == EVENTS
    assert [len(empty.requests), len(serving.requests)] == [1, 1]


@both
def test_a_refusal_for_good_is_not_repeated_at_the_next_address(
    make_gateway: Callable[[], Any], ask: Callable[..., Asked]
) -> None:
    refusing, serving = make_gateway(), make_gateway()
    refusing.error = errors.Overloaded("queue", 1.0)
    with pytest.raises(errors.Overloaded):
        ask([refusing.address, serving.address], "hello")
    assert serving.requests == []


@both
def test_when_no_address_serves_a_gateways_own_answer_is_the_error(
    gateway: Any, free_address: str, ask: Callable[..., Asked]
) -> None:
    gateway.error = errors.NoWorkers("prefill", 4.0)
    with pytest.raises(errors.NoWorkers):
        ask([gateway.address, free_address], "hello")


def test_a_client_stays_with_the_address_that_answered(gateway: Any, free_address: str) -> None:
    with Client([free_address, gateway.address]) as client:
        client.generate("hello")
        assert client._endpoints.order() == (gateway.address, free_address)


@both
@pytest.mark.parametrize(
    ("prompt", "limits", "phase"),
    [
        ("silent", {"first_token_s": 0.2}, "waiting for the first token (first_token_s=0.2)"),
        ("stall", {"between_tokens_s": 0.2}, "waiting for the next token (between_tokens_s=0.2)"),
        ("silent", {"total_s": 0.2}, "waiting for the first token (total_s=0.2)"),
        ("endless", {"total_s": 0.3}, "waiting for the next token (total_s=0.3)"),
    ],
)
def test_each_limit_ends_the_call_and_cancels_it_at_the_gateway(
    gateway: Any, ask: Callable[..., Asked], prompt: str, limits: dict[str, float], phase: str
) -> None:
    with pytest.raises(errors.DeadlineExceeded) as caught:
        ask(gateway.address, prompt, timeout=Timeout(**limits))
    assert caught.value.phase == phase
    assert gateway.left.wait(5)


@both
def test_a_connection_that_says_nothing_is_given_up_after_its_limit(
    silent_address: str, ask: Callable[..., Asked]
) -> None:
    with pytest.raises(ConnectionFailed, match=silent_address):
        ask(silent_address, "hello", timeout=Timeout(connect_s=0.2))


@both
def test_the_gateway_is_told_the_total_limit(gateway: Any, ask: Callable[..., Asked]) -> None:
    ask(gateway.address, "hello", timeout=Timeout(total_s=100))
    assert 0 < gateway.deadlines_s[0] < 102  # gRPC rounds it up


@both_calls
def test_models_and_status_are_values(gateway: Any, free_address: str, call: Callable[..., Any]) -> None:
    addresses = [free_address, gateway.address]
    (model,) = call(addresses, "models")
    assert (model.id, model.max_model_len, model.vocab_size, model.has_tokenizer) == ("tiny", 2048, 512, True)
    status = call(addresses, "status")
    assert (status.name, status.model, status.gateways[0].grpc) == ("demo", "tiny", gateway.address)
    assert (status.workers[0].id, status.workers[0].pid, status.workers[0].free_blocks) == ("p0", 7, 3)


@both_calls
def test_cancel_is_said_to_every_gateway(
    make_gateway: Callable[[], Any], free_address: str, call: Callable[..., Any]
) -> None:
    first, second = make_gateway(), make_gateway()
    addresses = [first.address, free_address, second.address]
    assert call(addresses, "cancel", "known") is True
    assert call(addresses, "cancel", "other") is False
    assert first.cancelled_ids == second.cancelled_ids == ["known", "other"]
    with pytest.raises(ConnectionFailed, match=free_address):
        call(free_address, "cancel", "known")


@both_calls
def test_a_closed_client_refuses_calls(gateway: Any, call: Callable[..., Any]) -> None:
    async def late() -> None:
        client = AsyncClient(gateway.address)
        await client.close()
        await client.models()

    client = Client(gateway.address)
    client.close()
    client.close()
    for use in (client.models, lambda: asyncio.run(late())):
        with pytest.raises(RuntimeError, match="closed"):
            use()


@pytest.mark.parametrize("addresses", ["localhost", "h:0", "h:70000", "h:x", ":7070", "", [], ["a:1", "b"]])
def test_addresses_must_be_host_and_port(addresses: Any) -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(ValueError, match="host:port"):
            make(addresses)


@pytest.mark.parametrize("addresses", ["h:0", "127.0.0.1:99999", "h:" + "9" * 5000])
def test_a_port_out_of_range_is_named_as_such(addresses: str) -> None:
    with pytest.raises(ValueError, match="a port from 1 to 65535"):
        Client(addresses)


@pytest.mark.parametrize("addresses", [None, 7070, {"h:1"}, b"h:1"])
def test_addresses_of_another_type_are_a_type_error(addresses: Any) -> None:
    with pytest.raises(TypeError, match="host:port or a list"):
        Client(addresses)


def test_the_examples_of_the_documentation_run(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text().replace("127.0.0.1:7070", gateway.address)
    examples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {}
    for example in examples:
        exec(example, namespace)
    namespace["client"].close()
    assert len(examples) == 10
    assert capsys.readouterr().out.count("Hello") == 4 + 3


def test_using_the_client_imports_neither_torch_nor_ray_nor_numpy() -> None:
    program = (
        "import sys, json, twinpool; early = [m for m in sys.modules if m.split('.')[0] == 'grpc'];"
        "twinpool.Client('127.0.0.1:1'); names = {m.split('.')[0] for m in sys.modules};"
        "print(json.dumps([early, sorted(names & {'torch', 'ray', 'numpy', 'pydantic', 'triton', 'rich', 'typer'})]))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(out) == [[], []]
