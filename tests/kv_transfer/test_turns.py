"""Work runs one after the other, and alarms ring when they should."""

import asyncio
import threading

import pytest

from twinpool.kv_transfer.turns import Alarm, Turns


def test_work_posted_from_within_work_runs_after_it() -> None:
    async def run() -> None:
        turns, done = Turns(asyncio.get_running_loop().time), list[str]()

        def outer() -> None:
            turns.post(lambda: done.append("inner"))
            done.append("outer")

        turns.post(outer)
        assert done == ["outer", "inner"]

    asyncio.run(run())


def test_work_that_fails_does_not_stop_what_follows() -> None:
    async def run() -> None:
        turns, done = Turns(asyncio.get_running_loop().time), list[str]()

        def fail() -> None:
            turns.post(lambda: done.append("behind"))
            raise ValueError("a test")

        with pytest.raises(ValueError, match="a test"):
            turns.post(fail)
        turns.post(lambda: done.append("next"))
        assert done == ["behind", "next"]

    asyncio.run(run())


def test_work_of_other_threads_runs_on_the_loop() -> None:
    async def run() -> None:
        turns, where = Turns(asyncio.get_running_loop().time), asyncio.Queue[int]()
        thread = threading.Thread(target=turns.post_threadsafe, args=(lambda: where.put_nowait(threading.get_ident()),))
        thread.start()
        assert await where.get() == threading.get_ident()
        thread.join()

    asyncio.run(run())


def test_posting_to_a_closed_loop_is_void() -> None:
    async def make() -> Turns:
        return Turns(asyncio.get_running_loop().time)

    asyncio.run(make()).post_threadsafe(lambda: None)


def test_an_alarm_keeps_the_earliest_deadline_until_it_rings() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        rings: asyncio.Queue[float] = asyncio.Queue()
        alarm = Alarm(Turns(loop.time), lambda: rings.put_nowait(loop.time()))
        start = loop.time()
        alarm.set(start + 60)
        alarm.set(start + 0.01)
        alarm.set(start + 30)  # found when it rings
        assert await rings.get() < start + 30
        alarm.set(start + 0.02)
        alarm.set(None)
        await asyncio.sleep(0.03)
        assert rings.empty()

    asyncio.run(run())
