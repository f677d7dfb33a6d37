"""Every kind of link does what conformance.py says: in threads, and where a worker may die, with it in a process."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from twinpool.kv_transfer.memory_network import MemoryNetwork

from .conformance import CHECKS
from .conformance_kinds import KINDS, Setting
from .conformance_worker import LocalWorker, RemoteWorker
from .conformance_world import Check, World

ROLES = ("source", "target")


class Nursery:
    """Processes for workers that may die. Beginning one takes seconds, so one that lives on is used again."""

    def __init__(self) -> None:
        self._all: list[RemoteWorker] = []

    def begin(self, kind: str) -> None:
        """See that there is one soon."""
        if not any(worker.is_alive and worker.kind == kind for worker in self._all):
            self._all.append(RemoteWorker(kind))

    def take(self, kind: str, setting: Setting) -> RemoteWorker:
        self.begin(kind)
        worker = next(worker for worker in self._all if worker.is_alive and worker.kind == kind)
        worker.settle(setting)
        return worker

    def close(self) -> None:
        for worker in self._all:
            worker.end()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


def make_remote(nursery: Nursery, kind: str, setting: Callable[[str], Setting], role: str) -> object:
    return nursery.take(kind, setting(role))


CASES = [  # slow: real sockets, real waits and real processes
    pytest.param(
        name,
        check,
        id=f"{name}-{check.name}",
        marks=[pytest.mark.slow] if kind.has_processes or check.waits else [],
    )
    for name, kind in KINDS.items()
    for check in CHECKS
    if kind.has_processes or not check.apart
]


@pytest.mark.parametrize(("kind", "check"), CASES)
def test_every_kind_of_link_conforms(kind: str, check: Check, nursery: Nursery) -> None:
    network, local = MemoryNetwork(), list[LocalWorker]()
    if KINDS[kind].has_processes:
        nursery.begin(kind)  # early, for it takes seconds

    def setting(role: str) -> Setting:
        return Setting(ROLES.index(role), check.open_timeout_s, check.chunk_timeout_s, network)

    def make_local(role: str) -> LocalWorker:
        local.append(LocalWorker(kind, setting(role)))
        return local[-1]

    apart, replace = check.apart, make_local
    if KINDS[kind].needs_processes:
        apart, replace = check.apart or ROLES[:1], partial(make_remote, nursery, kind, setting)

    def make(role: str) -> object:
        return nursery.take(kind, setting(role)) if role in apart else make_local(role)

    world = World(KINDS[kind], make("source"), make("target"), replace)
    try:
        check.run(world)
    finally:
        for worker in local:
            worker.close_all()
