"""The stand-in for NCCL keeps NCCL's rules; otherwise what passes over it would prove nothing."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from .fakes import WAIT_S, wait_until
from .strict_group import StrictGroup, StrictWork

pytestmark = pytest.mark.slow  # real sockets

A_WHILE_S = 0.1  # in which what must not happen would have


@pytest.fixture
def groups() -> Iterator[tuple[StrictGroup, StrictGroup]]:
    store, made = HashStore(), dict[int, StrictGroup]()
    store.set_timeout(timedelta(seconds=WAIT_S))

    def make(rank: int) -> None:
        made[rank] = StrictGroup(PrefixStore("link", store), rank)

    other = threading.Thread(target=make, args=(1,))
    other.start()
    make(0)
    other.join()
    yield made[0], made[1]
    for group in made.values():
        group.abort()


def of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def finish(*works: StrictWork) -> None:
    wait_until(lambda: all(work.is_completed() for work in works))


def test_messages_match_by_order_and_not_by_tag(groups: tuple[StrictGroup, StrictGroup]) -> None:
    source, target = groups
    first, second = of(0, 0), of(0, 0)
    received = [target.recv([first], 0, 8), target.recv([second], 0, 7)]
    sent = [source.send([of(1, 2)], 1, 7), source.send([of(3, 4)], 1, 8)]
    finish(*sent, *received)
    assert (first.tolist(), second.tolist()) == ([1, 2], [3, 4])


def test_a_send_lasts_until_it_is_matched(groups: tuple[StrictGroup, StrictGroup]) -> None:
    source, target = groups
    sent = source.send([of(1)], 1, 0)
    assert not sent.is_over.wait(A_WHILE_S)
    finish(target.recv([of(0)], 0, 0), sent)


def test_a_shorter_message_leaves_its_buffer_waiting(groups: tuple[StrictGroup, StrictGroup]) -> None:
    source, target = groups
    received = target.recv([of(0, 0, 0)], 0, 0)
    sent = source.send([of(1, 2)], 1, 0)
    assert not received.is_over.wait(A_WHILE_S)
    assert not sent.is_completed()


def test_a_longer_message_runs_on_into_the_next_buffer(groups: tuple[StrictGroup, StrictGroup]) -> None:
    source, target = groups
    first, second = of(0, 0), of(0, 0)
    received = [target.recv([first], 0, 0), target.recv([second], 0, 0)]
    source.send([of(1, 2, 3)], 1, 0)
    source.send([of(4, 5)], 1, 0)
    finish(*received)
    assert (first.tolist(), second.tolist()) == ([1, 2], [3, 4])


def test_the_end_of_the_other_is_no_event(groups: tuple[StrictGroup, StrictGroup]) -> None:
    source, target = groups
    received = target.recv([of(0)], 0, 0)
    source.abort()
    assert not received.is_over.wait(A_WHILE_S)


def test_an_abort_makes_what_is_under_way_look_completed(groups: tuple[StrictGroup, StrictGroup]) -> None:
    source, target = groups
    buffer = of(9)
    received = target.recv([buffer], 0, 0)
    sent = source.send(
        [
            of(1),
        ],
        1,
        0,
    )
    finish(received, sent)
    hanging = target.recv([buffer], 0, 0)
    target.abort()
    assert hanging.is_completed()
    assert hanging.wait()
    assert buffer.tolist() == [1]
    with pytest.raises(AssertionError, match="aborted"):
        target.recv([buffer], 0, 0)


def test_nobody_coming_is_the_error_that_torch_raises() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    for rank in (0, 1):
        with pytest.raises(RuntimeError):
            StrictGroup(PrefixStore(f"link {rank}", store), rank)
