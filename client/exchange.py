"""One generate call as both clients see it: which address is asked, which limit applies, what has arrived.

Pure bookkeeping: it opens no call, reads no clock and waits for nothing. Here the promise of the stream is checked:
each index of each choice arrives exactly once, in order.
"""

from dataclasses import dataclass, field
from typing import Any

from twinpool.client.errors import ConnectionFailed, Unreachable, error_from_rpc
from twinpool.client.results import (
    Choice,
    GenerationResult,
    StreamEvent,
    Timings,
    TokenLogprob,
    Usage,
    logprobs_from_proto,
    record_from_proto,
)
from twinpool.client.timeout import Timeout, Wait
from twinpool.core.errors import Internal
from twinpool.core.messages import FinishReason
from twinpool.protos.convert import finish_reason_from_proto
from twinpool.protos.twinpool.v1 import generation_pb2


@dataclass(slots=True)
class _Part:
    """What has arrived of one choice."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, event: StreamEvent, finish_reason: FinishReason | None) -> None:
        self.token_ids.extend(event.token_ids)
        self.texts.append(event.text)
        self.logprobs.extend(event.logprobs)
        self.finish_reason = finish_reason

    def choice(self, index: int) -> Choice:
        assert self.finish_reason is not None
        return Choice(index, "".join(self.texts), tuple(self.token_ids), self.finish_reason, tuple(self.logprobs))


class Exchange:
    """The state of one call for ``num_choices`` answers. ``addresses`` are tried in order until one sends a message."""

    def __init__(self, addresses: tuple[str, ...], timeout: Timeout, now: float, num_choices: int = 1) -> None:
        self._addresses = list(addresses)
        self._timeout = timeout
        self._ends_at = now + timeout.total_s
        self._unreachable = Unreachable()
        self._request_id = ""
        self._started = False
        self._parts = [_Part() for _ in range(num_choices)]
        self._prompt_token_ids: tuple[int, ...] = ()
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()
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
                num_tokens = sum(len(part.token_ids) for part in self._parts)
                reason = ConnectionFailed(self.address, f"lost after {num_tokens} tokens: {reason.reason}")
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
        part = self._part_due(response)
        self._started = True
        self._request_id = self._request_id or response.request_id
        event = StreamEvent(
            response.text,
            tuple(response.token_ids),
            len(part.token_ids),
            response.choice,
            logprobs_from_proto(response.logprobs),
        )
        if event.logprobs and len(event.logprobs) != len(event.token_ids):
            raise Internal(f"request {self._request_id}: {len(event.logprobs)} logprobs came with {event.token_ids}")
        part.add(event, finish_reason_from_proto(response.finish_reason))
        self._prompt_token_ids += tuple(response.prompt_token_ids)
        self._prompt_logprobs += logprobs_from_proto(response.prompt_logprobs)
        if all(part.finish_reason is not None for part in self._parts):
            self._finish(response)
        return event if event.token_ids or event.text else None

    def end(self) -> None:
        """Note that the stream ended well. Raises Internal when the last message is missing."""
        if self._result is None:
            raise Internal(f"request {self._request_id}: the stream ended without a finish reason")

    def _part_due(self, response: generation_pb2.GenerateResponse) -> _Part:
        """The choice that a message belongs to. Raises Internal unless the message comes next there."""
        request = f"request {self._request_id or response.request_id}"
        if response.choice >= len(self._parts):
            raise Internal(f"{request}: choice {response.choice} arrived, of {len(self._parts)} asked for")
        part = self._parts[response.choice]
        if part.finish_reason is not None:
            raise Internal(f"{request}: a message arrived after the last one of choice {response.choice}")
        index = len(part.token_ids)
        if response.token_ids and response.index != index:
            raise Internal(f"{request}: token {index} was due, token {response.index} arrived")
        return part

    def _finish(self, response: generation_pb2.GenerateResponse) -> None:
        choices = tuple(part.choice(index) for index, part in enumerate(self._parts))
        self._result = GenerationResult(
            text=choices[0].text,
            token_ids=choices[0].token_ids,
            finish_reason=choices[0].finish_reason,
            usage=record_from_proto(Usage, response.usage),
            timings=record_from_proto(Timings, response.timings),
            request_id=self._request_id,
            logprobs=choices[0].logprobs,
            choices=choices,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
        )
