"""A worker in a process of its own whose engine is timed: `python -m twinpool.cluster.profile.process`.

Reads one line of JSON, the worker's configuration, and serves as any worker does until its standard input ends. Knows
no measurement: each further line asks for the steps that ended since the last one.
"""

import asyncio
import json
import logging
import sys
import time
from dataclasses import asdict
from typing import Any

from twinpool.cluster.affinity import pin_process
from twinpool.cluster.engine import Engine
from twinpool.cluster.profile.rows import TimedStep
from twinpool.cluster.profile.timed_engine import TimedEngine
from twinpool.cluster.worker import Worker
from twinpool.core.errors import TwinpoolError
from twinpool.core.messages import Role, WorkerConfig


def write_config(config: WorkerConfig) -> bytes:
    """The first line that the process reads."""
    return json.dumps(asdict(config)).encode() + b"\n"


def _read_config(line: str) -> WorkerConfig:
    values = json.loads(line)
    values["role"], values["cores"] = Role(values["role"]), tuple(values["cores"])
    return WorkerConfig(**values)


async def serve(config: WorkerConfig) -> None:
    """Answer until standard input ends."""
    worker = Worker(config, clock=time.monotonic, engine_class=TimedEngine)
    try:
        address = await worker.start()
        _say({"address": asdict(address)})
        while await asyncio.to_thread(sys.stdin.readline):
            _say({"steps": await _take_steps(worker.engine)})
    finally:
        await worker.stop()


async def _take_steps(engine: Engine) -> list[TimedStep]:
    """Asked between two steps: the news of a step comes before it ends."""
    assert isinstance(engine, TimedEngine)
    loop = asyncio.get_running_loop()
    taken: asyncio.Future[list[TimedStep]] = loop.create_future()
    engine.post(lambda: _set(loop, taken, engine.take_steps()))
    return await taken


def _set(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[list[TimedStep]]", steps: list[TimedStep]) -> None:
    loop.call_soon_threadsafe(future.set_result, steps)


def _say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Serve; a problem with the configuration is told on standard output."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = _read_config(sys.stdin.readline())
    try:
        pin_process(config.cores)
        asyncio.run(serve(config))
    except TwinpoolError as error:
        _say({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
