"""Pinning a process: in a process of its own, so that the tests' own stays where it is."""

import os
import subprocess
import sys

import pytest

from twinpool.cluster.affinity import missing_cores, pin_process, usable_cores
from twinpool.core.errors import SpecError

PIN = """
import os, threading
from twinpool.cluster.affinity import pin_process, usable_cores
before, seen, go = threading.Event(), [], threading.Event()
def older():
    before.set(); go.wait(10); seen.append(os.sched_getaffinity(0))
thread = threading.Thread(target=older); thread.start(); before.wait(10)
core = max(usable_cores())
pin_process((core,))
go.set(); thread.join(10)
late = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0))); late.start(); late.join(10)
assert seen == [{core}, {core}] and usable_cores() == {core}, seen
"""


def test_every_thread_of_a_process_is_pinned_whether_it_was_there_before_or_came_later():
    done = subprocess.run([sys.executable, "-c", PIN], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_no_cores_leave_a_process_as_it_is():
    before = usable_cores()
    pin_process(())
    assert usable_cores() == before == os.sched_getaffinity(0)


def test_cores_that_are_not_there_are_refused_by_name_and_nothing_changes():
    before = usable_cores()
    with pytest.raises(SpecError, match="core 9998 cannot be used here; there are "):
        pin_process((min(before), 9998))
    assert usable_cores() == before


def test_missing_cores_are_told_with_those_there_are():
    assert missing_cores((0, 1), {0, 1, 2}) == ""
    assert missing_cores((5, 0, 9), {1, 0}) == "cores 5,9 cannot be used here; there are 0-1"
    assert missing_cores((7, 8, 9), {4, 0, 1, 2}) == "cores 7-9 cannot be used here; there are 0-2,4"
