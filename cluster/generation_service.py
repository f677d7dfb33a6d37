"""`twinpool.v1.GenerationService`: what clients of a cluster speak.

Knows requests and text; where a request runs is the dispatcher's business.
"""

import asyncio
import logging
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from twinpool.cluster.answer import Answer
from twinpool.cluster.dispatch import Dispatcher
from twinpool.cluster.flight import Flight, Flights
from twinpool.cluster.grpc_errors import abort
from twinpool.cluster.intake import Call, Intake
from twinpool.cluster.launch import GatewayConfig
from twinpool.cluster.request_records import RequestRecorder
from twinpool.core.errors import DeadlineExceeded, InvalidRequest, NoWorkers, Overloaded, TwinpoolError
from twinpool.model.shape import ModelShape
from twinpool.model.tokenizer import TextTokenizer
from twinpool.protos.twinpool.v1 import generation_pb2 as pb
from twinpool.protos.twinpool.v1 import generation_pb2_grpc

Write = Callable[[pb.GenerateResponse], Awaitable[None]]

log = logging.getLogger(__name__)

MAX_INLINE_TEXT = 4096  # longer texts are tokenised on a thread, so that streams go on meanwhile
MAX_INLINE_SCORES = 1024  # so are messages about longer prompts put together


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """One gateway's service; streams are cancelled when their client leaves."""

    def __init__(
        self,
        config: GatewayConfig,
        shape: ModelShape,
        tokenizer: TextTokenizer | None,
        dispatcher: Dispatcher,
        recorder: RequestRecorder | None = None,
    ) -> None:
        self._config = config
        self._shape = shape
        self._tokenizer = tokenizer
        self._intake = Intake(config, shape, tokenizer)
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._open: dict[str, Call] = {}  # by the ids that clients know

    async def Generate(self, message: pb.GenerateRequest, context: Any) -> None:  # noqa: N802 - named by the protocol
        """Stream the answers with ``context.write``: an async generator costs more for each message."""
        try:
            await self._generate(message, context)
        except grpc.aio.BaseError:  # of the call itself, whose client has left: grpc.aio knows
            raise
        except Exception as error:  # the outermost loop of a call: what is no TwinpoolError becomes Internal
            if not isinstance(error, TwinpoolError):
                log.exception("a request failed")
            await abort(context, error)

    async def _generate(self, message: pb.GenerateRequest, context: Any) -> None:
        request_id = message.request_id or secrets.token_hex(8)
        call = await self._accept(message)
        if request_id in self._open:
            raise InvalidRequest("request_id", f"{request_id!r} is in use")
        goal_class = message.goal_class or "default"
        flights = self._submit(call, context.time_remaining(), goal_class)
        self._open[request_id] = call
        try:
            await self._respond(call, flights, request_id, context.write)
        finally:  # a client that leaves, or whose deadline passes, cancels this coroutine
            del self._open[request_id]
            for request in call.requests:
                self._dispatcher.finish(request.request_id)
            if self._recorder is not None:
                self._recorder.ended(flights, goal_class, sys.exception())

    def _submit(self, call: Call, deadline_s: float | None, goal_class: str) -> Flights:
        try:
            return self._dispatcher.submit(call.requests, deadline_s, call.standing)
        except (DeadlineExceeded, NoWorkers, Overloaded) as error:
            if self._recorder is not None:
                self._recorder.refused(call.requests, goal_class, error, call.standing.tenant)
            raise

    async def Cancel(self, message: pb.CancelRequest, context: Any) -> pb.CancelResponse:  # noqa: N802, ARG002
        call = self._open.get(message.request_id)
        found = [self._dispatcher.cancel(request.request_id) for request in (call.requests if call else ())]
        return pb.CancelResponse(found=any(found))

    async def ListModels(self, message: Any, context: Any) -> pb.ListModelsResponse:  # noqa: N802, ARG002
        model = pb.Model(
            id=self._config.model_id,
            max_model_len=self._config.max_model_len,
            vocab_size=self._shape.vocab_size,
            has_tokenizer=self._tokenizer is not None,
        )
        return pb.ListModelsResponse(models=[model])

    async def _accept(self, message: pb.GenerateRequest) -> Call:
        if message.ByteSize() > MAX_INLINE_TEXT:
            return await asyncio.to_thread(self._intake.accept, message)
        return self._intake.accept(message)

    async def _respond(self, call: Call, flights: Flights, request_id: str, write: Write) -> None:
        """Write the messages of all answers, in the order in which their tokens come."""
        answers = [Answer(call, request.choice, request_id, self._tokenizer) for request in call.requests]
        while flights.num_open:
            choice, piece = await flights.next_piece()
            answer = answers[choice]
            if len(piece.prompt_logprobs) > MAX_INLINE_SCORES:
                response = await asyncio.to_thread(answer.take, piece)
            else:
                response = answer.take(piece)
            if answer.is_over:
                flights.end(choice)
                self._dispatcher.finish(call.requests[choice].request_id)  # workers know nothing of stop strings
                if not flights.num_open:
                    first = flights.of_choice[0]
                    response.usage.CopyFrom(_usage(first, sum(answer.num_tokens for answer in answers)))
                    response.timings.CopyFrom(_timings(first))
            await write(response)


def _usage(flight: Flight, completion_tokens: int) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=flight.request.num_prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=flight.record.cached_tokens,
    )


def _timings(flight: Flight) -> pb.Timings:
    record = flight.record
    return pb.Timings(
        prefill_worker=record.prefill_worker,
        decode_worker=record.decode_worker,
        queue_s=record.queue_s,
        prefill_s=record.prefill_s,
        handoff_s=record.handoff_s,
        wire_s=record.wire_s,
        exposed_s=record.exposed_s,
        kv_bytes=record.kv_bytes,
        ttft_s=flight.ttft_s,
        tpot_s=flight.tpot_s,
        attempts=record.attempts,
        placement=record.placement,
    )
