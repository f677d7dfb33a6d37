"""What torch's gloo does that the links rely on, or must not rely on; a torch that changes it breaks these first."""

import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from twinpool.kv_transfer.plan import Span

from .conformance_kinds import Setting
from .conformance_worker import LocalWorker, RemoteWorker
from .fakes import WAIT_S

pytestmark = pytest.mark.slow  # real sockets, real waits and a real process

WHOLE = Span(0, 3, 0, 6)
HERE, THERE = [9, 3, 4, 0, 7, 30], [1, 2, 5, 8, 20, 11]
SHORT = timedelta(seconds=0.2)
LONG = timedelta(seconds=WAIT_S)


@pytest.fixture
def groups() -> Iterator[tuple[Any, Any]]:
    """Ranks 0 and 1 of a standalone group; there is no default group in this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        descriptor = listener.detach()
    made: dict[int, Any] = {}

    def make(rank: int) -> None:
        store = TCPStore(
            "127.0.0.1",
            port,
            is_master=rank == 0,
            wait_for_workers=False,
            master_listen_fd=None if rank else descriptor,
        )
        options = ProcessGroupGloo._Options()
        options._timeout = LONG
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        made[rank] = ProcessGroupGloo(PrefixStore("facts", store), rank, 2, options)

    other = threading.Thread(target=make, args=(1,))
    other.start()
    make(0)
    other.join()
    yield made[0], made[1]
    made.clear()


def test_a_send_is_not_over_before_the_receive_is_posted(groups: tuple[Any, Any]) -> None:
    """So on_sent means that the target took it, not that the kernel did."""
    work = groups[0].send([torch.zeros(4)], 1, 0)
    with pytest.raises(RuntimeError, match="Timed out"):
        work.wait(SHORT)


def test_a_shorter_message_passes_for_a_whole_one(groups: tuple[Any, Any]) -> None:
    """So the header must say the size, and be compared."""
    buffer = torch.zeros(4)
    received = groups[1].recv([buffer], 0, 0)
    sent = groups[0].send([torch.ones(2)], 1, 0)
    received.wait(LONG)
    sent.wait(LONG)
    assert buffer.tolist() == [1, 1, 0, 0]


def test_after_a_wait_that_expired_nothing_goes_through_either_way(groups: tuple[Any, Any]) -> None:
    """So a link that failed once is closed, and the other end hears of it."""
    with pytest.raises(RuntimeError, match="Timed out"):
        groups[1].recv([torch.zeros(4)], 0, 0).wait(SHORT)
    with pytest.raises(RuntimeError):
        groups[1].send([torch.zeros(4)], 0, 1).wait(LONG)
    with pytest.raises(RuntimeError, match=r"closed|reset"):
        groups[0].send([torch.zeros(4)], 1, 0).wait(LONG)


def test_a_killed_peer_is_heard_of_long_before_the_deadline() -> None:
    """So a dead worker costs milliseconds, not a chunk's deadline."""
    source = RemoteWorker("gloo")
    target = LocalWorker("gloo", Setting(1, open_timeout_s=100.0, chunk_timeout_s=100.0))
    try:
        source.settle(Setting(0, open_timeout_s=100.0, chunk_timeout_s=100.0))
        end, ticket = target.listen()
        source.dial(ticket)
        assert target.next(end) == ("open",)
        target.receive(end, 0, WHOLE, THERE)
        source.end()
        kind, reason = target.next(end)
        assert (kind, "Timed out" in str(reason)) == ("error", False)
    finally:
        source.end()
        target.close_all()
