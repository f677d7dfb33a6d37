"""Leaving a stream, however it is done, ends the request at the gateway."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from twinpool.client.client import AsyncClient, Client
from twinpool.client.stream import AsyncTokenStream
from twinpool.core.errors import Cancelled


def test_breaking_out_of_a_loop_cancels(gateway: Any) -> None:
    with Client(gateway.address) as client:
        for event in client.stream("endless"):
            if event.index == 3:
                break
        assert gateway.left.wait(5)


def test_an_exception_in_a_with_block_cancels(gateway: Any) -> None:
    with Client(gateway.address) as client:
        with suppress(KeyError), client.stream("endless") as stream:
            next(stream)
            raise KeyError
        assert gateway.left.wait(5)
        assert list(stream) == []


def test_close_cancels_and_ends_the_stream(gateway: Any) -> None:
    with Client(gateway.address) as client:
        stream = client.stream("endless")
        next(stream)
        stream.close()
        stream.close()
        assert gateway.left.wait(5)
        assert next(stream, None) is None
        with pytest.raises(RuntimeError, match="no result"):
            _ = stream.result


def test_closing_from_another_thread_wakes_the_reader_with_cancelled(gateway: Any) -> None:
    with Client(gateway.address) as client:
        stream = client.stream("stall")
        next(stream)
        closer = threading.Timer(0.05, stream.close)
        closer.start()
        with pytest.raises(Cancelled):
            next(stream)
        closer.join()


def test_closing_the_client_ends_its_streams(gateway: Any) -> None:
    client = Client(gateway.address)
    stream = client.stream("endless")
    next(stream)
    client.close()
    with pytest.raises(Cancelled):
        list(stream)
    assert gateway.left.wait(5)


def test_a_stream_dropped_before_its_first_event_cancels(gateway: Any) -> None:
    with Client(gateway.address) as client:
        stream = client.stream("endless", request_id="mine")
        assert stream.request_id == "mine"
        while not gateway.requests:
            threading.Event().wait(0.005)
        del stream
        assert gateway.left.wait(5)


def test_the_gateways_request_id_is_known_from_the_first_event(gateway: Any) -> None:
    with Client(gateway.address) as client, client.stream("hello") as stream:
        assert stream.request_id == ""
        next(stream)
        assert stream.request_id == "g1"


def test_many_threads_share_one_client(gateway: Any) -> None:
    texts: list[str] = []
    with Client(gateway.address) as client:
        threads = [threading.Thread(target=lambda: texts.append(client.generate("hello").text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert texts == ["Hello"] * 8


async def leave_by_break(client: AsyncClient) -> None:
    async for event in client.stream("endless"):
        if event.index == 3:
            break


async def leave_by_exception(client: AsyncClient) -> None:
    with suppress(KeyError):
        async with client.stream("endless") as stream:
            await anext(stream)
            raise KeyError


async def leave_by_aclose(client: AsyncClient) -> None:
    stream = client.stream("endless")
    await anext(stream)
    await stream.aclose()
    assert [event async for event in stream] == []


async def leave_by_cancelling_the_task(client: AsyncClient) -> None:
    stream = client.stream("stall")
    await anext(stream)
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.02)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def leave_by_closing_from_another_task(client: AsyncClient) -> None:
    stream = client.stream("stall")
    await anext(stream)
    reader = asyncio.ensure_future(_next(stream))
    await asyncio.sleep(0.02)
    stream.close()
    with pytest.raises(Cancelled):
        await reader


async def leave_by_dropping_it_unread(client: AsyncClient) -> None:
    stream = client.stream("endless")
    await asyncio.sleep(0.05)
    assert stream.request_id == ""
    del stream


async def _next(stream: AsyncTokenStream) -> Any:
    return await anext(stream)


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_exception,
        leave_by_aclose,
        leave_by_cancelling_the_task,
        leave_by_closing_from_another_task,
        leave_by_dropping_it_unread,
    ],
)
def test_leaving_an_async_stream_cancels_while_the_client_lives_on(
    gateway: Any, leave: Callable[[AsyncClient], Awaitable[None]]
) -> None:
    async def scenario() -> str:
        async with AsyncClient(gateway.address) as client:
            await leave(client)
            assert await asyncio.to_thread(gateway.left.wait, 5)
            return (await client.generate("hello")).text

    assert asyncio.run(scenario()) == "Hello"


def test_an_async_stream_dropped_after_its_loop_is_gone_is_quiet(gateway: Any) -> None:
    async def scenario() -> AsyncTokenStream:
        stream = AsyncClient(gateway.address).stream("endless")
        await anext(stream)
        return stream

    stream = asyncio.run(scenario())
    del stream
    gc.collect()


def test_async_streams_of_one_client_run_side_by_side(gateway: Any) -> None:
    async def scenario() -> list[str]:
        async with AsyncClient(gateway.address) as client:
            results = await asyncio.gather(*(client.generate("hello") for _ in range(16)))
            return [result.text for result in results]

    assert asyncio.run(scenario()) == ["Hello"] * 16
