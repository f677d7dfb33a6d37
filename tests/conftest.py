"""What all tests share: hypothesis profiles, a free port, leak checks, and the rule that nothing is imported bare."""

import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
LEAK_GRACE_S = 5.0

settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("unit", settings.get_profile("ci"), max_examples=30)
settings.register_profile("soak", settings.get_profile("ci"), derandomize=False, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def no_leaked_threads() -> Iterator[None]:
    """Fail the test when threads that it started are alive a while after it."""
    before = set(threading.enumerate())
    yield
    leaked = _wait_until_empty(lambda: {thread.name for thread in threading.enumerate() if thread not in before})
    assert not leaked, f"threads left: {', '.join(sorted(leaked))}"


@pytest.fixture
def no_leaked_processes() -> Iterator[None]:
    """Fail the test when processes that it started below this one are alive a while after it."""
    before = set(_descendants(os.getpid()))
    yield
    leaked = _wait_until_empty(
        lambda: {f"{pid} {name}" for pid, name in _descendants(os.getpid()).items() if pid not in before}
    )
    assert not leaked, f"processes left: {', '.join(sorted(leaked))}"


def _wait_until_empty(look: Callable[[], set[str]]) -> set[str]:
    deadline = time.monotonic() + LEAK_GRACE_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _descendants(root: int) -> dict[int, str]:
    """Pid and name of every live process below ``root``, from /proc."""
    children: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text().rpartition(")")
        except OSError:
            continue  # it ended meanwhile
        state, parent = tail.split()[:2]
        if state != "Z":
            children.setdefault(int(parent), []).append((int(stat.parent.name), head.partition("(")[2]))
    found: dict[int, str] = {}
    todo = [root]
    while todo:
        for pid, name in children.get(todo.pop(), []):
            found[pid] = name
            todo.append(pid)
    return found


def _bare_imports() -> list[str]:
    """Our folders imported by their own name, ``router`` for ``twinpool.router``: a name that others' packages have."""
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    bare = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.partition(".")[0] in folders and Path(file).resolve().is_relative_to(ROOT):
            bare.append(name)
    return sorted(bare)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays; looking through it for garbage again and again takes seconds."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _bare_imports():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in _bare_imports():
        terminalreporter.write_line(f"ERROR: {name} was imported bare; import twinpool.{name}", red=True)
