"""What a worker tells gateways of orders, and what is left of them when a gateway calls again."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from tests.cluster.engine_builders import make_config, make_request
from twinpool.cluster.outbox import Outbox
from twinpool.cluster.worker import Worker
from twinpool.core.messages import Request, WorkerAddress
from twinpool.model.sequence import Key
from twinpool.protos.convert import address_to_proto, request_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

AWAY = address_to_proto(WorkerAddress("away", "1", "127.0.0.1:1"))
TIMEOUT_S = 20.0


@asynccontextmanager
async def running() -> AsyncIterator[Worker]:
    worker = Worker(make_config(), clock=time.monotonic)
    await worker.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield worker
    finally:
        await worker.stop()


def reserve(worker: Worker, request_id: str) -> None:
    request = request_to_proto(make_request(request_id))
    worker.attempts.reserve("g", pb.ReserveOrder(request=request, source=AWAY))


def prefill(worker: Worker, request: Request, *, is_parked: bool = False) -> None:
    order = pb.PrefillOrder(request=request_to_proto(request), target=AWAY, expects_parked=is_parked)
    worker.attempts.prefill("g", order)


def wait_for(event: threading.Event) -> None:
    assert event.wait(TIMEOUT_S)


async def next_delta(outbox: Outbox) -> pb.Delta:
    while not (output := await outbox.take()).deltas:
        pass
    return output.deltas[0]


def test_a_reservation_cancelled_before_its_source_starts_leaves_the_view_at_once() -> None:
    async def reserve_and_cancel() -> list[int]:
        async with running() as worker:
            outbox = worker.attempts.attached("g")
            counts = [(await outbox.take()).view.reservations]  # the idle engine's first and only view
            for request_id in ("first", "second"):
                reserve(worker, request_id)
            for request_id in ("first", "second"):
                worker.attempts.cancel("g", request_id)
                counts.append((await outbox.take()).view.reservations)
            return counts

    assert asyncio.run(reserve_and_cancel()) == [0, 1, 0]


def test_a_reservation_cancelled_before_the_engine_hears_of_it_leaves_the_view() -> None:
    """To the engine, which was busy, nothing has changed: it alone would not say anything."""

    async def reserve_and_cancel() -> list[int]:
        async with running() as worker:
            outbox, step_ends = worker.attempts.attached("g"), threading.Event()
            counts = [(await outbox.take()).view.reservations]
            worker.engine.post(partial(wait_for, step_ends))
            reserve(worker, "r")
            worker.attempts.stepped([], worker.engine.load())  # somebody else's step
            counts.append((await outbox.take()).view.reservations)
            worker.attempts.bind_blocks("r", 1)
            worker.attempts.cancel("g", "r")
            step_ends.set()
            while reservations := (await outbox.take()).view.reservations:
                counts.append(reservations)
            return counts

    assert asyncio.run(reserve_and_cancel()) == [0, 1]


def test_a_gateway_that_calls_again_has_nothing_left_of_its_first_call() -> None:
    async def call_twice() -> tuple[int, int, bool]:
        async with running() as worker:
            former = worker.attempts.attached("g")
            reserve(worker, "target")
            prefill(worker, make_request("source"))
            await next_delta(former)
            before, _ = worker.num_attempts, worker.attempts.attached("g")
            return before, worker.num_attempts, former.is_replaced

    assert asyncio.run(call_twice()) == (2, 0, True)


def test_kv_that_is_here_is_sent_elsewhere_only_by_an_order_that_knows_of_it() -> None:
    """Whoever does not know of it did not hear the first token either, and waits for it."""

    async def order_twice(*, is_parked: bool) -> list[tuple[str, int]]:
        async with running() as worker:
            outbox, request = worker.attempts.attached("g"), make_request("r")
            prefill(worker, request)
            deltas = [await next_delta(outbox)]
            if is_parked:
                prefill(worker, replace(request, epoch=2), is_parked=True)
                other = make_request("other", range(50, 60))
                prefill(worker, other)
            else:
                prefill(worker, replace(request, epoch=2))
            deltas.append(await next_delta(outbox))
            return [(delta.request_id, delta.epoch) for delta in deltas]

    assert asyncio.run(order_twice(is_parked=False)) == [("r", 1), ("r", 2)]
    assert asyncio.run(order_twice(is_parked=True)) == [("r", 1), ("other", 1)]


def test_a_request_without_a_token_is_told_as_one_that_no_worker_can_answer() -> None:
    async def fail() -> list[pb.Failure]:
        async with running() as worker:
            outbox = worker.attempts.attached("g")
            reserve(worker, "r")
            worker.attempts.engine_failed(Key("r", 1), "why")
            while not (output := await outbox.take()).failures:
                pass
            assert worker.num_attempts == 0
            return list(output.failures)

    expected = pb.Failure(request_id="r", epoch=1, kind=pb.FAILURE_KIND_UNANSWERABLE, reason="why")
    assert asyncio.run(fail()) == [expected]
