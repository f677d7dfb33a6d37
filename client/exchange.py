"""One generate call as both clients see it: which address is asked, which limit applies, what has arrived.

Pure bookkeeping: it opens no call, reads no clock and waits for nothing. Here the promise of the stream is checked:
each index arrives exactly once, in order.
"""

from typing import Any

from twinpool.client.errors import ConnectionFailed, Unreachable, error_from_rpc
from twinpool.client.results import GenerationResult, StreamEvent, Timings, Usage, record_from_proto
from twinpool.client.timeout import Timeout, Wait
from twinpool.core.errors import Internal
from twinpool.protos.convert import finish_reason_from_proto
from twinpool.protos.twinpool.v1 import generation_pb2


class Exchange:
    """The state of one call. ``addresses`` are tried in order until one sends a message."""

    def __init__(self, addresses: tuple[str, ...], timeout: Timeout, now: float) -> None:
        self._addresses = list(addresses)
        self._timeout = timeout
        self._ends_at = now + timeout.total_s
        self._unreachable = Unreachable()
        self._request_id = ""
        self._started = False
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._result: GenerationResult | None = None

    @property
    def address(self) -> str:
        """Where the current attempt goes."""
        return self._addresses[0]

    @property
    def started(self) -> bool:
        """Whether a message has arrived; from then on no other address can take over."""
        return self._started

    @property
    def request_id(self) -> str:
        """The id the gateway gave, empty until its first message."""
        return self._request_id

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer, or None before its last message."""
        return self._result

    @property
    def wait(self) -> Wait:
        """The limit of waiting for the next message."""
        if self._started:
            return Wait("waiting for the next token", "between_tokens_s", self._timeout.between_tokens_s)
        return Wait("waiting for the first token", "first_token_s", self._timeout.first_token_s)

    def remaining_s(self, now: float) -> float:
        """Return what is left of ``total_s``, at least 0."""
        return max(0.0, self._ends_at - now)

    def fail(self, error: Any) -> None:
        """Note that the attempt ended with a ``grpc.RpcError`` and turn to the next address.

        Raises:
            TwinpoolError: there is none to turn to, or no other address could do better.
        """
        total = Wait(self.wait.doing, "total_s", self._timeout.total_s)
        reason = error_from_rpc(error, self.address, total.phase)
        if self._started:
            if isinstance(reason, ConnectionFailed):
                reason = ConnectionFailed(self.address, f"lost after {len(self._token_ids)} tokens: {reason.reason}")
            raise reason from error
        self._unreachable.add(reason)
        del self._addresses[0]
        if not self._addresses:
            raise self._unreachable.summary() from error

    def accept(self, response: generation_pb2.GenerateResponse) -> StreamEvent | None:
        """Take in the next message; return its tokens and text, or None when it has neither.

        Raises:
            Internal: the gateway broke its promise: an index is missing or repeated, or comes after the end.
        """
        index = len(self._token_ids)
        if self._result is not None:
            raise Internal(f"request {self._request_id}: a message arrived after the last one")
        if response.token_ids and response.index != index:
            raise Internal(f"request {response.request_id}: token {index} was due, token {response.index} arrived")
        self._started = True
        self._request_id = self._request_id or response.request_id
        event = StreamEvent(response.text, tuple(response.token_ids), index)
        self._token_ids.extend(event.token_ids)
        self._texts.append(event.text)
        self._finish(response)
        return event if event.token_ids or event.text else None

    def end(self) -> None:
        """Note that the stream ended well. Raises Internal when the last message is missing."""
        if self._result is None:
            raise Internal(f"request {self._request_id}: the stream ended without a finish reason")

    def _finish(self, response: generation_pb2.GenerateResponse) -> None:
        reason = finish_reason_from_proto(response.finish_reason)
        if reason is not None:
            self._result = GenerationResult(
                text="".join(self._texts),
                token_ids=tuple(self._token_ids),
                finish_reason=reason,
                usage=record_from_proto(Usage, response.usage),
                timings=record_from_proto(Timings, response.timings),
                request_id=self._request_id,
            )
