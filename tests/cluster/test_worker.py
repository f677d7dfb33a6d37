"""What a worker tells gateways of orders that its engine never hears of."""

import asyncio
import time

from tests.cluster.engine_builders import make_config, make_request
from twinpool.cluster.worker import Worker
from twinpool.core.messages import WorkerAddress
from twinpool.protos.convert import address_to_proto, request_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb


def test_a_reservation_cancelled_before_its_source_starts_leaves_the_view_at_once() -> None:
    async def reserve_and_cancel() -> list[int]:
        worker = Worker(make_config(), clock=time.monotonic)
        await worker.start()
        try:
            outbox = worker.attached("g")
            counts = [(await outbox.take()).view.reservations]  # the idle engine's first and only view
            source = address_to_proto(WorkerAddress("away", "1", "127.0.0.1:1"))
            for request_id in ("first", "second"):
                request = make_request(request_id)
                worker.reserve("g", pb.ReserveOrder(request=request_to_proto(request), source=source))
            for request_id in ("first", "second"):
                worker.cancel("g", request_id)
                counts.append((await outbox.take()).view.reservations)
            return counts
        finally:
            await worker.stop()

    assert asyncio.run(asyncio.wait_for(reserve_and_cancel(), 20)) == [0, 1, 0]
