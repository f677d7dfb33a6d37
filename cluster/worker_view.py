"""What a worker says of its load: the engine's word, and the reservations of which the engine has not heard yet.

Knows no gateway, and not how views travel.
"""

from collections import deque
from dataclasses import fields

from twinpool.cluster.engine_events import Load
from twinpool.cluster.outbox import view_of
from twinpool.kv_transfer.metrics import TransferMetrics
from twinpool.model.sequence import Key
from twinpool.protos.twinpool.v1 import cluster_pb2
from twinpool.protos.twinpool.v1 import worker_pb2 as pb


class LoadView:
    """Owns the newest view; each reservation is in it once, from `expect` to `forget`. Control thread only."""

    def __init__(self) -> None:
        self.view = pb.WorkerView()  # of version 0: the engine has not spoken
        self._load: Load | None = None
        self._transfer = cluster_pb2.TransferMetrics()
        self._expected: dict[Key, int] = {}  # blocks of reservations that the load does not count
        self._asked: deque[Key] = deque()  # the engine was told to count these, in this order

    def expect(self, key: Key, num_blocks: int) -> None:
        """A reservation came. The view stays as it is: the gateway that sent the order counts it itself."""
        self._expected[key] = num_blocks

    def asked(self, key: Key) -> None:
        """The engine was told to `want` it, so that a load will count it soon."""
        self._asked.append(key)

    def update(self, load: Load) -> None:
        """The engine's newest load, which counts all that it had heard."""
        num_heard = load.wants - (0 if self._load is None else self._load.wants)
        for _ in range(num_heard):
            self._expected.pop(self._asked.popleft(), None)
        self._load = load
        self._renew()

    def forget(self, key: Key) -> bool:
        """The attempt is over here. True: the view has changed, and an idle engine has no step that would say so."""
        if self._expected.pop(key, None) is None or self._load is None:
            return False
        self._renew()
        return True

    def note_transfer(self, metrics: TransferMetrics) -> bool:
        """What handoffs wait for. True: the view has changed, though its version stays: it counts loads."""
        transfer = transfer_to_proto(metrics)
        if transfer == self._transfer or self._load is None:
            return False
        self._transfer = transfer
        self.view.transfer.CopyFrom(transfer)
        return True

    def _renew(self) -> None:
        assert self._load is not None
        self.view = view_of(self._load, self.view.version + 1)
        self.view.transfer.CopyFrom(self._transfer)
        self.view.reservations += len(self._expected)
        self.view.reserved_blocks += sum(self._expected.values())


def transfer_to_proto(metrics: TransferMetrics) -> cluster_pb2.TransferMetrics:
    """Metrics as they travel: fields of the same names."""
    return cluster_pb2.TransferMetrics(**{item.name: getattr(metrics, item.name) for item in fields(metrics)})
