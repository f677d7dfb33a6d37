"""What was started during the block ends with it, orphans included; what was there before stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from twinpool.cluster.descendants import ending_descendants

pytestmark = pytest.mark.slow  # processes

SLEEP = "import time; time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEP}"
PARENT = f"""
import subprocess, sys
quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}}
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}], **quiet).pid)
"""  # ends at once, and leaves a child in a session of its own


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_orphan_in_a_session_of_its_own_ends_and_an_older_child_stays() -> None:
    older = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        with ending_descendants(patience_s=0.1):
            done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
            orphan = int(done.stdout)
            assert is_alive(orphan)
        assert not is_alive(orphan)
        assert older.poll() is None
    finally:
        older.kill()
        older.wait()


def test_a_child_that_ignores_sigterm_is_killed_also_when_the_block_fails() -> None:
    child = None
    with pytest.raises(ZeroDivisionError), ending_descendants(patience_s=0.1):
        child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"deaf\n"
        raise ZeroDivisionError
    assert child is not None
    assert child.stdout is not None
    child.stdout.close()
    assert not is_alive(child.pid)
    child.wait()
