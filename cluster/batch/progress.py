"""Tells how a batch gets on: a bar on a terminal, elsewhere a line every few seconds.

Knows what to print; the counts are tally.py's.
"""

import asyncio
import time
from collections.abc import Callable
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twinpool.cluster.batch.tally import Tally, as_line

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.2


async def show_progress(tally: Tally, stream: IO[str], every_s: float = LINE_EVERY_S) -> None:
    """Show the tally on a stream until cancelled, and once more then."""
    if stream.isatty():
        await _show_bar(tally, stream)
    else:
        await _repeat(lambda: _write(stream, as_line(tally, time.monotonic())), every_s)


async def _show_bar(tally: Tally, stream: IO[str]) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as progress:
        task = progress.add_task("", total=tally.total, completed=tally.done)

        def update() -> None:
            told = [f"{tally.tokens_per_s(time.monotonic()):.0f} tokens/s"]
            told += [f"{tally.failed} with an error"] if tally.failed else []
            told += [tally.note] if tally.note else []
            progress.update(task, completed=tally.done, description=", ".join(told))

        await _repeat(update, BAR_EVERY_S)


async def _repeat(show: Callable[[], None], every_s: float) -> None:
    try:
        while True:
            await asyncio.sleep(every_s)
            show()
    finally:
        show()


def _write(stream: IO[str], line: str) -> None:
    stream.write(line + "\n")
    stream.flush()
