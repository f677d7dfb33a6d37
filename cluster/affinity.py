"""Pins a process to CPU cores, and says which cores there are. Knows no worker and no pool."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from twinpool.core.errors import SpecError


def usable_cores() -> frozenset[int]:
    """The cores that this process may run on."""
    return frozenset(os.sched_getaffinity(0))


def missing_cores(cores: Sequence[int], usable: Collection[int]) -> str:
    """What is wrong with asking for ``cores``, in words; "" when all of them can be used."""
    missing = [core for core in cores if core not in usable]
    if not missing:
        return ""
    these = "core" if len(missing) == 1 else "cores"
    return f"{these} {_as_ranges(missing)} cannot be used here; there are {_as_ranges(usable)}"


def _as_ranges(cores: Collection[int]) -> str:
    """(0, 1, 2, 5) as ``0-2,5``, the way a cluster YAML spells them."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def pin_process(cores: Sequence[int]) -> None:
    """Let every thread of this process, and those it starts later, run on ``cores`` only; none asks for nothing.

    Call it before anything computes: torch's threads inherit it from the thread that starts them.

    Raises:
        SpecError: a core does not exist or is not for this process. Nothing was changed.
    """
    if not cores:
        return
    if told := missing_cores(cores, usable_cores()):
        raise SpecError(f"pools: cores: {told}")
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:
            continue  # it ended meanwhile
