"""Runs checks of Triton kernels in Triton's interpreter, which must be chosen before triton is first imported.

So a child process imports them once and runs one check after the other; as a script this file is that child.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path


class Interpreter:
    """A child process with TRITON_INTERPRET=1, and what to ask of it."""

    def __init__(self):
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, module, check, *arguments):
        """Call ``check`` of a module of this folder; fail with its traceback if it raises."""
        self._child.stdin.write(json.dumps([module, check, arguments]) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, f"the interpreter's process ended with {self._child.wait(timeout=10)}"
        told = json.loads(answer)
        assert told is None, told

    def close(self):
        self._child.stdin.close()
        self._child.wait(timeout=10)
        self._child.stdout.close()


def serve():
    sys.path.insert(0, str(Path(__file__).parent))
    warnings.simplefilter("error")
    for line in sys.stdin:
        module, check, arguments = json.loads(line)
        told = None
        try:
            with contextlib.redirect_stdout(sys.stderr):
                getattr(importlib.import_module(module), check)(*arguments)
        except Exception:  # noqa: BLE001 - told to who asked
            told = traceback.format_exc()
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
