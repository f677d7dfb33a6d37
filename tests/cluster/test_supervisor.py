"""What the supervisor does with work that it no longer waits for, and with signals, whenever they come."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from twinpool.cluster import supervisor
from twinpool.cluster.state import StateFolder
from twinpool.cluster.stopping import HEARD
from twinpool.cluster.supervisor import _unless, supervise


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


SPEC = """
name: interrupted
model: {path: "modelled:instant", max_model_len: 64}
pools: {mixed: {workers: 1}}
kv: {memory: 1MiB}
gateway: {grpc_port: 0, http_port: 0}
"""


@pytest.mark.slow  # imports Ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_that_rays_start_swallows_still_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    import ray

    (tmp_path / "c.yaml").write_text(SPEC)
    began = []

    def swallow(**_: Any) -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            signal.signal(number, signal.default_int_handler)  # as Ray does with SIGTERM
        began.append(number)

    def unexpected(*_: Any) -> None:
        pytest.fail("it went on after the signal")

    monkeypatch.setattr(ray, "init", swallow)
    monkeypatch.setattr(supervisor, "_controller", unexpected)
    before = [signal.getsignal(each) for each in HEARD]
    supervise(tmp_path / "c.yaml", StateFolder(tmp_path / "state"), unexpected)
    assert began == [number]
    assert [signal.getsignal(each) for each in HEARD] == before


@pytest.mark.ray
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_while_ray_starts_ends_the_supervisor_and_all_below_it(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "c.yaml").write_text(SPEC)
    environment = {**os.environ, "TWINPOOL_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "twinpool.cluster.cli", "up", str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        family = set[psutil.Process]()
        is_told = False
        while process.poll() is None:  # the test's own timeout bounds it
            with contextlib.suppress(psutil.NoSuchProcess):
                family |= set(psutil.Process(process.pid).children(recursive=True))
            if family and not is_told:  # Ray's first process is there
                process.send_signal(number)
                is_told = True
            time.sleep(0.02)
        assert process.stdout is not None
        assert process.stdout.read() == b""  # it never served
    assert is_told
    alive = [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert alive == []
