"""The bench's hold on its two worker processes: starts them, asks them one thing at a time, and ends them.

Knows what a process is asked for; not what it means.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from twinpool.core.errors import Internal

Values = dict[str, Any]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
GRACE_S = 5.0  # a process tells of its own deadline first
LONGEST_REPLY = 1 << 20


class Process:
    """One worker process. ``told`` is what it said of itself at the start."""

    def __init__(self, role: str, setup: Values) -> None:
        self.role = role
        self.told: Values = {}
        command = [sys.executable, "-m", "twinpool.cluster.bench.transfer_worker", json.dumps(setup | {"role": role})]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._rest = b""

    def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            Internal: it did not come up; what it wrote to standard error says why.
        """
        self.told = self._hear(START_TIMEOUT_S)

    def ask(self, do: str, timeout_s: float = 60.0, **fields: Any) -> Values:
        """Have it do something, and return what it answers.

        Raises:
            Internal: it failed, was too slow, or is gone.
        """
        self.begin(do, timeout_s, **fields)
        return self.finish(timeout_s)

    def begin(self, do: str, timeout_s: float = 60.0, **fields: Any) -> None:
        """Have it do something; ``finish`` returns the answer."""
        assert self._process.stdin is not None
        line = json.dumps({"do": do, "timeout_s": timeout_s, **fields})
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Internal(f"the {self.role} process is gone") from None

    def finish(self, timeout_s: float = 60.0) -> Values:
        """See ``begin``."""
        answer = self._hear(timeout_s + GRACE_S)
        if "error" in answer:
            raise Internal(f"the {self.role} process: {answer['error']}")
        return answer

    def _hear(self, timeout_s: float) -> Values:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([fd], [], [], timeout_s)[0]:
                raise Internal(f"the {self.role} process said nothing for {timeout_s:g} s")
            part = os.read(fd, LONGEST_REPLY)
            if not part:
                raise Internal(f"the {self.role} process is gone")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Values = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it, by force if need be."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it is gone
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def running(roles: Sequence[str], setup: Values) -> Iterator[list[Process]]:
    """Processes of these roles that serve, started side by side; none is left at the end."""
    processes: list[Process] = []
    try:
        for role in roles:
            processes.append(Process(role, setup))
        for process in processes:
            process.wait_ready()
        yield processes
    finally:
        for process in processes:
            process.stop()
