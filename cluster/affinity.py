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
    missing = [str(core) for core in cores if core not in usable]
    if not missing:
        return ""
    these = "core " + missing[0] if len(missing) == 1 else "cores " + ", ".join(missing)
    return f"{these} cannot be used here; there are {', '.join(map(str, sorted(usable)))}"


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
