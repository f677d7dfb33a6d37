"""Starts and ends a cluster's supervisor from the command line; the supervisor does the rest."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twinpool.cluster.launch import plan_launch
from twinpool.cluster.state import ClusterState, StateFolder
from twinpool.core.errors import Internal, SpecError, TwinpoolError

START_TIMEOUT_S = 600.0  # large models load for minutes
DOWN_TIMEOUT_S = 45.0  # the supervisor itself gives its controller 30, and then ends its Ray
KILL_TIMEOUT_S = 5.0


def run_in_foreground(spec_path: Path, folder: StateFolder, on_ready: Callable[[ClusterState], None]) -> None:
    """Serve until SIGINT or SIGTERM. Raises SpecError, with nothing left running, if it cannot start."""
    from twinpool.cluster.supervisor import supervise

    supervise(spec_path, folder, on_ready)


@contextmanager
def lifeline() -> Iterator[int]:
    """A pipe's read end for ``run_detached``; both ends are closed with the block, or with this process."""
    read_end, write_end = os.pipe()  # no other process has the write end
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


def run_detached(spec_path: Path, folder: StateFolder, lifeline_fd: int | None = None) -> ClusterState:
    """Leave a supervisor behind, and return once its cluster serves.

    With ``lifeline_fd``, which stays the caller's, it takes the cluster down when the lifeline's other end closes.

    Raises:
        SpecError: the cluster cannot start as described; Internal: it failed otherwise. Nothing is left running.
    """
    plan = plan_launch(spec_path)  # the cheap problems are told before anything starts
    if folder.is_running(plan.name):
        raise SpecError(f"a cluster named {plan.name!r} is already up; `twinpool down {plan.name}` ends it")
    read_end, write_end = os.pipe()
    log_path = folder.log_path(plan.name)
    try:
        try:
            process = _start_supervisor(spec_path, folder.path, log_path, write_end, lifeline_fd)
        finally:
            os.close(write_end)  # the supervisor alone has it now: its end is heard
        try:
            _await_ready(read_end, log_path)
        except BaseException:
            process.terminate()  # it takes down what it started
            process.wait(DOWN_TIMEOUT_S)
            raise
    finally:
        os.close(read_end)
    state = folder.read(plan.name)
    if state is None:
        raise Internal(f"{plan.name} ended as soon as it was up; its log: {log_path}")
    return state


def _start_supervisor(
    spec_path: Path, state_path: Path, log_path: Path, ready_fd: int, lifeline_fd: int | None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "twinpool.cluster.supervisor", str(spec_path.absolute())]
    command += ["--state-dir", str(state_path), "--ready-fd", str(ready_fd)]
    inherited = [ready_fd]
    if lifeline_fd is not None:
        command += ["--lifeline-fd", str(lifeline_fd)]
        inherited.append(lifeline_fd)
    with log_path.open("w") as log_file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=inherited,
            start_new_session=True,
            cwd="/",
        )


def _await_ready(read_end: int, log_path: Path) -> None:
    readable, _, _ = select.select([read_end], [], [], START_TIMEOUT_S)
    line = os.read(read_end, 65_536).decode() if readable else ""
    if not line:
        what = "ended before it was ready" if readable else f"was not ready after {START_TIMEOUT_S:g} s"
        raise Internal(f"the supervisor {what}; its log: {log_path}")
    answer = json.loads(line)
    if not answer["ok"]:
        error: TwinpoolError = SpecError(answer["error"]) if answer["is_spec"] else Internal(answer["error"])
        raise error


def take_down(state: ClusterState, folder: StateFolder) -> None:
    """End the supervisor of a running cluster and wait until its process is gone, and so all that it owned.

    Raises:
        Internal: it did not end in time, and was killed, or does not end even then.
    """
    try:
        process = os.pidfd_open(state.supervisor_pid)
    except ProcessLookupError:  # it ended by itself
        return
    try:
        if folder.is_running(state.name):  # else its number may be another process's by now
            _end_process(process, f"{state.name}'s supervisor (process {state.supervisor_pid})", DOWN_TIMEOUT_S)
    finally:
        os.close(process)


def _end_process(process: int, what: str, timeout_s: float) -> None:
    """Have the process behind a descriptor end, in its own way or, past its time, in ours."""
    _signal(process, signal.SIGTERM)
    if _has_ended(process, timeout_s):
        return
    _signal(process, signal.SIGKILL)
    if _has_ended(process, KILL_TIMEOUT_S):
        raise Internal(f"{what} did not end within {timeout_s:g} s and was killed")
    raise Internal(f"{what} did not end within {timeout_s:g} s, and not when it was killed either")


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        signal.pidfd_send_signal(process, number)


def _has_ended(process: int, timeout_s: float) -> bool:
    """Wait for it; a process that its parent has not heard of yet has ended, too."""
    readable, _, _ = select.select([process], [], [], timeout_s)
    return bool(readable)
