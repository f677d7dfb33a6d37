"""What the supervisor does with work that it no longer waits for."""

import asyncio

import pytest

from twinpool.cluster.supervisor import _unless


async def forever(began: asyncio.Event, ended: list[str]) -> None:
    began.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("cancelled")


def test_work_is_cancelled_when_told_to_stop() -> None:
    async def scenario() -> None:
        stop, began, ended = asyncio.Event(), asyncio.Event(), list[str]()
        waiting = asyncio.create_task(_unless(stop, forever(began, ended)))
        await began.wait()
        stop.set()
        assert await waiting is None
        assert ended == ["cancelled"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_work_that_ends_first_gives_its_result_or_its_error() -> None:
    async def result() -> int:
        return 7

    async def error() -> int:
        raise ZeroDivisionError

    async def scenario() -> None:
        stop = asyncio.Event()
        assert await _unless(stop, result()) == 7
        with pytest.raises(ZeroDivisionError):
            await _unless(stop, error())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
