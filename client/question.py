"""One short call of a client, to one gateway after the other until one answers, or to all of them.

Serves both clients: it starts the calls and judges how they end, and whoever asks does the waiting.
"""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from twinpool.client.endpoints import Endpoints
from twinpool.client.errors import Unreachable, error_from_rpc
from twinpool.client.results import ClusterStatus, ModelInfo, record_from_proto, status_from_proto
from twinpool.protos.twinpool.v1 import cluster_pb2, generation_pb2


class Question:
    """Use: ``for call in question.calls(): with question: question.hear(call())``, then read the answer."""

    def __init__(self, endpoints: Endpoints, timeout_s: float, request: Any, *, of_all: bool = False) -> None:
        self._endpoints = endpoints
        self._timeout_s = timeout_s
        self._request = request
        self._of_all = of_all
        self._address = ""
        self._answers: list[Any] = []
        self._unreachable = Unreachable()

    def calls(self) -> Iterator[Callable[[], Any]]:
        """Yield, for each address that is still to be asked, a function that starts the call there."""
        for address in self._endpoints.order():
            self._address = address
            yield lambda: self._method()(self._request, timeout=self._timeout_s)
            if self._answers and not self._of_all:
                self._endpoints.prefer(address)
                return

    def hear(self, answer: Any) -> None:
        """Take in what the current address answered."""
        self._answers.append(answer)

    def answers(self) -> list[Any]:
        """Return all answers, at least one. Raises the one error that says why there is none."""
        if not self._answers:
            raise self._unreachable.summary()
        return self._answers

    def models(self) -> tuple[ModelInfo, ...]:
        """Return the answer to ListModels."""
        return tuple(record_from_proto(ModelInfo, model) for model in self.answers()[0].models)

    def status(self) -> ClusterStatus:
        """Return the answer to GetStatus."""
        return status_from_proto(self.answers()[0])

    def found(self) -> bool:
        """Return the answer to Cancel: whether any gateway knew the request."""
        return any(answer.found for answer in self.answers())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, grpc.RpcError):
            return False
        self._unreachable.add(error_from_rpc(error, self._address, "waiting for an answer"))
        return True

    def _method(self) -> Any:
        if isinstance(self._request, cluster_pb2.GetStatusRequest):
            return self._endpoints.cluster(self._address).GetStatus
        stub = self._endpoints.generation(self._address)
        return stub.Cancel if isinstance(self._request, generation_pb2.CancelRequest) else stub.ListModels
