"""Keeps many token streams open to one server, and measures the CPU time that its process takes for them.

Knows that a message has tokens; knows neither gateway nor cluster. CPU time is that of the whole process, all threads.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from twinpool.core.errors import Internal
from twinpool.protos.twinpool.v1 import generation_pb2

Call = Any
START_TIMEOUT_S = 120.0
SETTLE_S = 0.5
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # otherwise all channels to one address share one connection
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server did while its streams ran."""

    cpu_s: float
    wall_s: float
    tokens: int
    messages: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def cores(self) -> float:
        """CPU seconds per second."""
        return self.cpu_s / self.wall_s

    @property
    def cores_per_1000_tokens_per_s(self) -> float:
        return 1000 * self.cpu_s / self.tokens


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How many streams, over how many connections, measured for how long."""

    streams: int
    connections: int
    duration_s: float


def cpu_s_of(pid: int) -> float:
    """User and system seconds that a process has used, all its threads. Raises Internal when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise Internal(f"process {pid} of the server cannot be read: {error.strerror}") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


async def measure_idle(pid: int, duration_s: float) -> float:
    """Cores that a process takes while nothing is asked of it."""
    before_s, started_s = cpu_s_of(pid), time.monotonic()
    await asyncio.sleep(duration_s)
    return (cpu_s_of(pid) - before_s) / (time.monotonic() - started_s)


async def measure_streams(
    address: str, pid: int, method: str, requests: Iterator[bytes], options: StreamOptions
) -> Sample:
    """Open all streams, wait until each has begun, and measure; a stream that ends is replaced by the next request.

    Args:
        method: of unary requests and streamed GenerateResponses.
        requests: as many as streams will be opened; serialised.

    Raises:
        Internal: a stream failed, or did not begin in time.
    """
    async with AsyncExitStack() as stack:
        calls = []
        for _ in range(options.connections):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS))
            calls.append(_method(channel, method))
        counter = _Counter(options.streams)
        tasks = [
            asyncio.create_task(counter.follow(calls[number % len(calls)], requests))
            for number in range(options.streams)
        ]
        try:
            return await _measure(pid, counter, tasks, options.duration_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _method(channel: Any, method: str) -> Callable[[bytes], Call]:
    call: Callable[[bytes], Call] = channel.unary_stream(
        method, response_deserializer=generation_pb2.GenerateResponse.FromString
    )
    return call


class _Counter:
    """Counts what all streams bring."""

    def __init__(self, streams: int) -> None:
        self.tokens = 0
        self.messages = 0
        self._waiting = streams
        self.all_began = asyncio.Event()

    async def follow(self, open_call: Callable[[bytes], Call], requests: Iterator[bytes]) -> None:
        """Read one stream after another, for ever."""
        began = False
        while True:
            call = open_call(next(requests))
            try:
                async for message in call:
                    self.messages += 1
                    self.tokens += len(message.token_ids)
                    if not began:
                        began = True
                        self._begin()
            finally:
                call.cancel()  # otherwise it outlives the task that reads it

    def _begin(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self.all_began.set()


async def _measure(pid: int, counter: _Counter, tasks: list[asyncio.Task[None]], duration_s: float) -> Sample:
    began = asyncio.create_task(counter.all_began.wait())
    try:
        await _unless_failed([*tasks, began], tasks, START_TIMEOUT_S)
        if not began.done():
            raise Internal(f"not all streams began within {START_TIMEOUT_S:g} s")
    finally:
        began.cancel()
    await _unless_failed(tasks, tasks, SETTLE_S)
    before = (cpu_s_of(pid), time.monotonic(), counter.tokens, counter.messages)
    await _unless_failed(tasks, tasks, duration_s)
    after = (cpu_s_of(pid), time.monotonic(), counter.tokens, counter.messages)
    cpu_s, wall_s, tokens, messages = (end - begin for begin, end in zip(before, after, strict=True))
    if not tokens:
        raise Internal(f"no token came in {wall_s:.1f} s")
    return Sample(cpu_s, wall_s, int(tokens), int(messages))


async def _unless_failed(waited: list[Any], streams: list[asyncio.Task[None]], timeout_s: float) -> None:
    """Wait so long, or until one is done; a stream never is, unless it failed."""
    await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in streams:
        if task.done() and (error := task.exception()) is not None:
            what = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else repr(error)
            raise Internal(f"a stream failed: {what}")
