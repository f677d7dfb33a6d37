"""Checks of links that are disturbed: bytes that are not what was announced, and processes that die or stop."""

import signal

from twinpool.kv_transfer.plan import Span

from .conformance_worker import WorkerDied
from .conformance_world import CALM_S, HASTY_S, HERE, THERE, WHOLE, Checks, World

CHECKS = Checks()


# --- What came is not what was announced ------------------------------------------------------------------------------


@CHECKS.add()
def a_group_of_another_handoff_is_refused(world: World) -> None:
    _refuse(world, "other", 1)


@CHECKS.add()
def a_group_of_another_epoch_is_refused(world: World) -> None:
    _refuse(world, "r", 2)


def _refuse(world: World, request_id: str, epoch: int) -> None:
    link = world.open()
    before = world.bystanders(THERE)
    link.receive(0, WHOLE, THERE)
    link.send(0, WHOLE, HERE, request_id, epoch)
    assert "announced" in str(world.target.until(link.target_end, "error"))
    link.receive(1, WHOLE, THERE)  # a poisoned link takes no more
    link.send(1, WHOLE, HERE)
    assert link.received() == ("closed",)
    assert world.bystanders(THERE) == before


@CHECKS.add(chunk_s=HASTY_S)
def a_shorter_message_is_not_accepted(world: World) -> None:
    link = world.open()
    before = world.bystanders(THERE)
    link.receive(0, Span(0, 3, 0, 2), THERE[:2])
    link.send(0, Span(0, 3, 0, 1), HERE[:1])
    assert link.received()[0] == "error"
    assert world.bystanders(THERE) == before


@CHECKS.add(chunk_s=CALM_S, apart=("target",))
def a_longer_message_costs_the_link_or_that_one_process(world: World) -> None:
    """gloo ends a process whose buffer is too small, and nothing can catch it: sizes are agreed, never sent."""
    link = world.open()
    before = world.bystanders(THERE)
    link.receive(0, Span(0, 3, 0, 1), THERE[:1])
    link.send(0, Span(0, 3, 0, 2), HERE[:2])
    if world.kind.long_message_kills:
        try:
            link.received()
            raise AssertionError("gloo has learned to refuse it: say so in LinkKind, and in GlooWire.receive")
        except WorkerDied:
            world.target = world.replace("target")
    else:
        assert link.received()[0] == "error"
        assert world.bystanders(THERE) == before
    world.open().move()


@CHECKS.add()
def damaged_data_is_reported_and_not_kept(world: World) -> None:
    world.source.damage("data")
    link = world.open()
    before = world.bystanders(THERE[:2], damaged=True)
    link.receive(0, Span(0, 3, 0, 2), THERE[:2])
    link.send(0, Span(0, 3, 0, 2), HERE[:2])
    assert link.received() == ("received", 0, False)
    assert link.sent() == ("sent", 0)
    assert world.bystanders(THERE[:2], damaged=True) == before
    link.move(1)
    assert world.has_arrived()


@CHECKS.add()
def a_damaged_header_is_refused(world: World) -> None:
    world.source.damage("header")
    link = world.open()
    before = world.bystanders(THERE)
    link.receive(0, WHOLE, THERE)
    link.send(0, WHOLE, HERE)
    assert link.received()[0] == "error"
    assert world.bystanders(THERE) == before


# --- Processes that die or stop ---------------------------------------------------------------------------------------


@CHECKS.add(chunk_s=CALM_S, apart=("source",))
def nothing_of_a_stopped_source_lands_in_blocks_that_are_used_again(world: World) -> None:
    link = world.open()
    link.move(0)
    for seq in range(1, 6):
        link.send(seq, WHOLE, HERE)
    world.source.signal(signal.SIGSTOP)
    for seq in range(1, 6):
        link.receive(seq, WHOLE, THERE)
    assert world.target.until(link.target_end, "error")
    world.target.close(link.target_end)
    assert world.target.join(link.target_end)
    world.target.fill(THERE, 0x55)
    before = world.target.fingerprint(list(range(32)), WHOLE)
    world.source.signal(signal.SIGCONT)
    assert world.source.until(link.source_end, "closed")
    assert world.target.fingerprint(list(range(32)), WHOLE) == before
    world.open().move()


@CHECKS.add(chunk_s=CALM_S, apart=("target",))
def a_stopped_target_costs_its_link_only(world: World) -> None:
    link = world.open()
    link.move(0)
    world.target.signal(signal.SIGSTOP)
    for seq in range(1, 6):
        link.send(seq, WHOLE, HERE)
    assert world.source.until(link.source_end, "error")
    world.target.signal(signal.SIGCONT)
    link.receive(1, WHOLE, THERE)
    assert world.target.until(link.target_end, "closed")
    world.open().move()


@CHECKS.add(chunk_s=CALM_S, apart=("target",))
def closing_does_not_wait_for_a_stopped_target_and_nothing_leaves_blocks_after_it(world: World) -> None:
    link = world.open()
    for seq in range(3):
        link.receive(seq, WHOLE, THERE)
    world.target.signal(signal.SIGSTOP)
    for seq in range(3):
        link.send(seq, WHOLE, HERE)
    world.source.close(link.source_end)
    world.source.fill(HERE, 0x55)
    world.target.signal(signal.SIGCONT)
    assert world.target.until(link.target_end, "closed")
    after = world.target.fingerprint(THERE, WHOLE)
    world.target.fill(THERE, 0x55)
    assert world.target.fingerprint(THERE, WHOLE) != after
    assert world.source.join(link.source_end)


@CHECKS.add(chunk_s=CALM_S, apart=("source",))
def a_killed_source_costs_its_link_only(world: World) -> None:
    link = world.open()
    link.move(0)
    link.receive(1, WHOLE, THERE)
    world.source.signal(signal.SIGKILL)
    assert link.received()[0] == "error"
    world.source = world.replace("source")
    world.open().move()


@CHECKS.add(chunk_s=CALM_S, apart=("target",))
def a_killed_target_costs_its_link_only(world: World) -> None:
    link = world.open()
    link.move(0)
    world.target.signal(signal.SIGKILL)
    for seq in range(1, 6):
        link.send(seq, WHOLE, HERE)
    assert world.source.until(link.source_end, "error")
    world.target = world.replace("target")
    world.open().move()
