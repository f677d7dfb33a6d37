"""Checks of links that work: order, concurrency, back-pressure, deadlines, closing, and beginning anew."""

from twinpool.kv_transfer.link import Ticket
from twinpool.kv_transfer.plan import Span

from .conformance_kinds import CHUNK_BYTES
from .conformance_world import CALM_S, HASTY_S, HERE, THERE, WHOLE, Checks, World
from .fakes import wait_until

LARGE = Span(0, 3, 0, 24)  # twelve chunks
NUM_ROUNDS = 20

CHECKS = Checks()


# --- Order and concurrency --------------------------------------------------------------------------------------------


@CHECKS.add()
def a_group_arrives_in_the_named_blocks_and_nowhere_else(world: World) -> None:
    link, span = world.open(), Span(1, 3, 2, 6)
    others = [block for block in range(32) if block not in THERE[2:]]
    untouched = ((others, Span(0, 3, 0, 6)), (THERE[2:], Span(0, 1, 2, 6)))
    before = [world.target.fingerprint(*part) for part in untouched]
    link.receive(0, span, THERE[2:])
    link.send(0, span, HERE[2:])
    assert (link.sent(), link.received()) == (("sent", 0), ("received", 0, True))
    assert world.target.fingerprint(THERE[2:], span) == world.source.fingerprint(HERE[2:], span)
    assert [world.target.fingerprint(*part) for part in untouched] == before


@CHECKS.add()
def groups_of_many_handoffs_arrive_in_the_order_of_their_announcement(world: World) -> None:
    link = world.open()
    groups = [(seq, f"request-{seq % 9}", seq % 9, Span(seq % 3, 3, seq % 6, 6)) for seq in range(90)]
    for seq, request_id, epoch, span in groups:
        link.send(seq, span, HERE[span.first_block :], request_id, epoch)
    for seq, request_id, epoch, span in groups:
        link.receive(seq, span, THERE[span.first_block :], request_id, epoch)
    assert [link.sent() for _ in groups] == [("sent", seq) for seq, *_ in groups]
    assert [link.received() for _ in groups] == [("received", seq, True) for seq, *_ in groups]
    assert world.has_arrived()


@CHECKS.add()
def links_between_the_same_workers_do_not_mix(world: World) -> None:
    links = [world.open() for _ in range(4)]
    for seq in range(12):
        for number, link in enumerate(links):
            link.receive(seq, Span(0, 3, 0, 6), [6 * number + block for block in range(6)])
    for seq in range(12):
        for number, link in enumerate(links):
            link.send(seq, WHOLE, [block + number for block in range(6)])
    for number, link in enumerate(links):
        assert [link.received() for _ in range(12)] == [("received", seq, True) for seq in range(12)]
        there = world.target.fingerprint([6 * number + block for block in range(6)], WHOLE)
        assert there == world.source.fingerprint([block + number for block in range(6)], WHOLE)


@CHECKS.add()
def a_discarded_group_touches_no_block(world: World) -> None:
    link, everything = world.open(), list(range(32))
    before = world.target.fingerprint(everything, WHOLE)
    link.receive(0, WHOLE, None)
    link.send(0, WHOLE, HERE)
    assert link.received() == ("received", 0, True)
    assert world.target.fingerprint(everything, WHOLE) == before


# --- Slices of heads --------------------------------------------------------------------------------------------------


@CHECKS.add()
def a_slice_of_heads_arrives_in_the_named_heads_and_layers_and_nowhere_else(world: World) -> None:
    link, here, there = world.open(), Span(1, 3, 2, 6), Span(0, 2, 2, 6)
    others = [block for block in range(32) if block not in THERE[2:]]
    untouched = ((others, WHOLE), (THERE[2:], Span(0, 3, 2, 6), [0, 1]), (THERE[2:], Span(2, 3, 2, 6)))
    before = [world.target.fingerprint(*part) for part in untouched]
    link.receive(0, there, THERE[2:], "r", 1, [1, 2], [1, 0, 1])
    link.send(0, here, HERE[2:], "r", 1, [0, 1])
    assert (link.sent(), link.received()) == (("sent", 0), ("received", 0, True))
    arrived = world.target.fingerprint(THERE[2:], there, [1, 2])
    assert arrived == world.source.fingerprint(HERE[2:], here, [0, 1])
    assert [world.target.fingerprint(*part) for part in untouched] == before


@CHECKS.add()
def slices_of_heads_make_up_a_request_in_turn_with_whole_groups(world: World) -> None:
    link = world.open()
    for seq in range(30):
        heads = [[0, 1], None, [1, 2]][seq % 3]
        ids = [(block + seq) % 32 for block in THERE]
        link.receive(seq, WHOLE, ids, "r", 1, heads)
        link.send(seq, WHOLE, HERE, "r", 1, heads)
    assert [link.received() for _ in range(30)] == [("received", seq, True) for seq in range(30)]
    for seq, heads in ((30, [0, 1]), (31, [1, 2])):
        link.receive(seq, WHOLE, THERE, "r", 1, heads)
        link.send(seq, WHOLE, HERE, "r", 1, heads)
        assert link.received() == ("received", seq, True)
    assert world.has_arrived()


@CHECKS.add(chunk_s=HASTY_S)
def a_slice_of_heads_is_not_accepted_where_all_were_announced(world: World) -> None:
    link, span = world.open(), Span(0, 3, 0, 2)
    before = world.bystanders(THERE)
    link.receive(0, span, THERE[:2])
    link.send(0, span, HERE[:2], "r", 1, [0, 1])
    assert link.received()[0] == "error"
    assert world.bystanders(THERE) == before


# --- Back-pressure and deadlines --------------------------------------------------------------------------------------


@CHECKS.add(chunk_s=HASTY_S)
def a_sender_runs_two_chunks_ahead_at_most_and_fails_by_the_deadline(world: World) -> None:
    link = world.open()
    link.send(0, LARGE, list(range(24)))
    link.send(1, WHOLE, HERE)
    assert link.sent()[0] == "error"
    assert world.source.num_gathered() <= 2 * CHUNK_BYTES


@CHECKS.add(chunk_s=HASTY_S)
def a_receive_that_nobody_fills_fails_by_the_deadline(world: World) -> None:
    link = world.open()
    link.receive(0, WHOLE, THERE)
    assert link.received()[0] == "error"


@CHECKS.add(open_s=HASTY_S)
def a_target_whose_source_never_comes_fails_by_the_deadline(world: World) -> None:
    end, _ = world.target.listen()
    assert [world.target.next(end)[0], world.target.next(end)] == ["error", ("closed",)]
    assert world.target.join(end)


@CHECKS.add(open_s=HASTY_S)
def a_source_with_a_ticket_that_nobody_holds_fails_by_the_deadline(world: World) -> None:
    end = world.source.dial(Ticket("127.0.0.1", 9, b"\0" * 16))
    assert [world.source.next(end)[0], world.source.next(end)] == ["error", ("closed",)]
    assert world.source.join(end)


@CHECKS.add(open_s=HASTY_S)
def a_source_with_a_wrong_secret_meets_nobody(world: World) -> None:
    there, ticket = world.target.listen()
    here = world.source.dial(Ticket(ticket.host, ticket.port, b"\0" * 16))
    assert world.source.next(here)[0] == world.target.next(there)[0] == "error"


# --- Closing, and beginning anew --------------------------------------------------------------------------------------


@CHECKS.add(chunk_s=HASTY_S)
def closing_one_end_ends_the_other(world: World) -> None:
    link = world.open()
    link.receive(0, WHOLE, THERE)
    world.source.close(link.source_end)
    assert link.sent() == ("closed",)
    assert link.received()[0] == "error"


@CHECKS.add(chunk_s=HASTY_S)
def after_close_only_closed_is_reported(world: World) -> None:
    link = world.open()
    link.receive(0, WHOLE, THERE)
    world.target.close(link.target_end)
    link.close()
    assert link.received() == ("closed",)
    assert world.target.heard(link.target_end) == [("open",), ("closed",)]


@CHECKS.add(chunk_s=CALM_S)
def a_failed_link_is_followed_by_another_that_takes_the_next_epoch_only(world: World) -> None:
    failed = world.open()
    failed.receive(0, WHOLE, THERE, "r", 1)
    assert failed.received()[0] == "error"
    fresh = world.open()  # beside the one that failed
    failed.close()
    fresh.receive(0, WHOLE, THERE, "r", 2)
    fresh.send(0, WHOLE, HERE, "r", 2)
    assert fresh.received() == ("received", 0, True)
    assert world.has_arrived()
    world.target.fill(THERE, 0)
    before = world.bystanders(THERE)
    fresh.receive(1, WHOLE, THERE, "r", 2)
    fresh.send(1, WHOLE, HERE, "r", 1)
    assert world.target.until(fresh.target_end, "error")
    assert world.bystanders(THERE) == before


@CHECKS.add(chunk_s=CALM_S)
def rounds_leave_no_descriptor_no_thread_and_no_block_behind(world: World) -> None:
    workers = (world.source, world.target)

    def counts() -> list[int]:
        return [count() for worker in workers for count in (worker.num_open_files, worker.num_threads)]

    def play(num_rounds: int) -> None:
        for number in range(num_rounds):
            link = world.open()
            link.move()
            if number % 2:
                link.receive(1, WHOLE, THERE)  # is never filled
            link.close()

    play(2)  # what a process pays once
    before = counts()
    play(NUM_ROUNDS)
    wait_until(lambda: all(now <= then for now, then in zip(counts(), before, strict=True)))
    wait_until(lambda: not any(worker.num_groups_held() for worker in workers))
