"""One run of a batch from its files to its exit code.

Knows the order of things: what is checked before anything starts, and what is told at the end.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from twinpool.cluster.batch.attach import Where, attached
from twinpool.cluster.batch.input_file import check_apart, scan_input
from twinpool.cluster.batch.output_file import OutputFile
from twinpool.cluster.batch.progress import show_progress
from twinpool.cluster.batch.run import BatchRun, RunSettings
from twinpool.cluster.batch.tally import Tally, as_summary, as_values, start_tally
from twinpool.cluster.json_text import json_text
from twinpool.cluster.state import StateFolder
from twinpool.cluster.stopping import Stopped, StopSignals
from twinpool.core.errors import InvalidRequest, SpecError, TwinpoolError


def run_batch(
    input_path: Path, output_path: Path, where: Where, settings: RunSettings, folder: StateFolder, *, as_json: bool
) -> int:
    """Answer what the output does not answer yet, tell what was done, and return the exit code.

    Raises:
        SpecError: input, output or cluster cannot be used.
    """
    batch = scan_input(input_path)
    check_apart(input_path, output_path)
    with StopSignals() as stop, OutputFile(output_path, batch.keys) as output:
        tally = start_tally(batch.keys, output.answered, time.monotonic())
        if tally.done < tally.total:
            run = BatchRun(batch.lines(without=output.answered), output, tally, settings)
            _perform(run, tally, where, output_path, folder, stop)
            output.sync()
    _tell(tally, as_json=as_json)
    return tally.exit_code


def _perform(
    run: BatchRun, tally: Tally, where: Where, output_path: Path, folder: StateFolder, stop: StopSignals
) -> None:
    """Run, and note in the tally why it ended before its time; what bad input is, is raised."""
    if where.spec_path is not None:  # large models load for minutes
        sys.stderr.write(f"bringing up {where.spec_path} for this batch\n")
    try:
        with attached(where, output_path, folder, stop) as addresses:
            tally.started_at = time.monotonic()
            asyncio.run(_drive(run, addresses, tally, stop))
    except Stopped:
        tally.stopped = stop.heard
    except (SpecError, InvalidRequest):
        raise
    except OSError as error:
        tally.stopped = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except TwinpoolError as error:
        tally.stopped = str(error)


async def _drive(run: BatchRun, addresses: Sequence[str], tally: Tally, stop: StopSignals) -> None:
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(run.answer_all(addresses))
    progress = asyncio.ensure_future(show_progress(tally, sys.stderr))
    try:
        with stop.ending(lambda: loop.call_soon_threadsafe(work.cancel)):
            await work
    except asyncio.CancelledError:
        tally.stopped = stop.heard
    finally:
        progress.cancel()
        await asyncio.gather(progress, return_exceptions=True)


def _tell(tally: Tally, *, as_json: bool) -> None:
    now = time.monotonic()
    sys.stdout.write((json_text(as_values(tally, now)) if as_json else as_summary(tally, now)) + "\n")
    sys.stdout.flush()
