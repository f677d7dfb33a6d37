"""A dispatcher with workers that say only what a test has them say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tests.cluster.local_cluster import make_plan
from twinpool.cluster.dispatch import Dispatcher
from twinpool.cluster.flight import Flights
from twinpool.cluster.gateway import placement_settings
from twinpool.core.messages import FinishReason, Goal, Request, Role, WorkerAddress
from twinpool.core.sampling import SamplingParams
from twinpool.protos.convert import finish_reason_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.admission import AdmissionSettings
from twinpool.router.standing import Standing
from twinpool.router.views import WorkerView

BLOCK_TOKENS = 8
LONG = tuple(range(BLOCK_TOKENS + 1))
ONE_MIXED = MappingProxyType({"m": Role.MIXED})
ONE_PAIR = MappingProxyType({"p": Role.PREFILL, "d": Role.DECODE})


class World:
    """Requests go in, orders come out; `now` moves by hand."""

    def __init__(
        self,
        roles: Mapping[str, Role] = ONE_MIXED,
        *,
        has_workers: bool = True,
        num_blocks: int = 1000,
        max_queued: int = 10,
        **admission: Any,
    ) -> None:
        self.now = 100.0
        self.sent: list[tuple[str, pb.GatewayMessage]] = []
        self.roles = roles
        self.num_blocks = num_blocks
        num_prefill = sum(role is Role.PREFILL for role in roles.values())
        self.dispatcher = Dispatcher(
            placement_settings(make_plan(num_prefill, 0, 1).gateways[0], 64),
            AdmissionSettings(max_queued=max_queued, **admission),
            3,
            send=lambda worker_id, order: self.sent.append((worker_id, order)),
            clock=lambda: self.now,
        )
        for worker_id in roles if has_workers else ():
            self.join(worker_id)

    def join(self, worker_id: str) -> None:
        view = WorkerView(worker_id, "1", self.roles[worker_id], self.num_blocks, BLOCK_TOKENS)
        self.dispatcher.table.join(view, self.now)
        self.dispatcher.joined(WorkerAddress(worker_id, "1", f"{worker_id}:1"))

    def submit(
        self,
        name: str,
        num: int = 1,
        prompt: Sequence[int] = LONG,
        *,
        max_tokens: int = 5,
        deadline_s: float = 1e6,
        tenant: str = "default",
    ) -> Flights:
        sampling = SamplingParams(max_tokens=max_tokens, seed=1)
        first = Request(name, 1, tuple(prompt), len(prompt), sampling, Goal(10, 10), priority=0)
        requests = [replace(first, request_id=f"{name}{choice}", choice=choice) for choice in range(num)]
        return self.dispatcher.submit(requests, deadline_s, Standing(tenant))

    def say(
        self,
        request_id: str,
        index: int,
        token_id: int,
        *,
        worker: str = "m",
        finish: FinishReason | None = None,
        view: pb.WorkerView | None = None,
    ) -> None:
        """A token of the first attempt."""
        delta = pb.Delta(
            request_id=request_id,
            epoch=1,
            index=index,
            token_ids=[token_id],
            finish_reason=finish_reason_to_proto(finish),
        )
        self.dispatcher.stepped(worker, pb.StepOutput(deltas=[delta], view=view))

    def show(self, worker: str, version: int, *, peak_blocks: int = 0) -> None:
        """A view."""
        self.dispatcher.stepped(worker, pb.StepOutput(view=pb.WorkerView(version=version, peak_blocks=peak_blocks)))

    @property
    def orders(self) -> list[pb.GatewayMessage]:
        return [order for _, order in self.sent]

    @property
    def begun(self) -> list[str]:
        return [order.prefill.request.request_id for order in self.orders if order.HasField("prefill")]

    @property
    def cancelled(self) -> list[str]:
        return [order.cancel.request_id for order in self.orders if order.HasField("cancel")]
