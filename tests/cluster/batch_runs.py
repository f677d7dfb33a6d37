"""Runs of batches for tests, in an event loop beside the cluster that they go to."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from tests.cluster.batch_files import Fields, write_lines
from twinpool.cluster.batch.input_file import scan_input
from twinpool.cluster.batch.output_file import OutputFile
from twinpool.cluster.batch.run import BatchRun, RunSettings
from twinpool.cluster.batch.tally import Tally, start_tally

P = ParamSpec("P")


def in_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test of coroutines in an event loop of its own."""

    @wraps(test)
    def run_test(*arguments: P.args, **keywords: P.kwargs) -> None:
        asyncio.run(test(*arguments, **keywords))

    return run_test


async def run(folder: Path, addresses: Sequence[str], **settings: Any) -> Tally:
    """What one run does, from the files ``in`` and ``out`` of a folder."""
    batch = scan_input(folder / "in")
    with OutputFile(folder / "out", batch.keys) as output:
        tally = start_tally(batch.keys, output.answered, time.monotonic())
        lines = batch.lines(without=output.answered)
        await BatchRun(lines, output, tally, RunSettings(**settings)).answer_all(addresses)
    return tally


def put(folder: Path, lines: list[Fields | str]) -> None:
    write_lines(folder / "in", lines)
