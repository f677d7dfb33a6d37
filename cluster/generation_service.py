"""`twinpool.v1.GenerationService`: what clients of a cluster speak.

Knows requests and text; where a request runs is the dispatcher's business.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from twinpool.cluster.dispatch import Dispatcher
from twinpool.cluster.flight import Flight, Piece
from twinpool.cluster.grpc_errors import abort
from twinpool.cluster.intake import Intake
from twinpool.cluster.launch import GatewayConfig
from twinpool.core.errors import InvalidRequest, TwinpoolError
from twinpool.model.detokenizer import Detokenizer
from twinpool.model.shape import ModelShape
from twinpool.model.tokenizer import TextTokenizer
from twinpool.protos.convert import finish_reason_to_proto
from twinpool.protos.twinpool.v1 import generation_pb2 as pb
from twinpool.protos.twinpool.v1 import generation_pb2_grpc

log = logging.getLogger(__name__)

MAX_INLINE_TEXT = 4096  # longer texts are tokenised on a thread, so that streams go on meanwhile


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """One gateway's service; streams are cancelled when their client leaves."""

    def __init__(
        self, config: GatewayConfig, shape: ModelShape, tokenizer: TextTokenizer | None, dispatcher: Dispatcher
    ) -> None:
        self._config = config
        self._shape = shape
        self._tokenizer = tokenizer
        self._intake = Intake(config, shape, tokenizer)
        self._dispatcher = dispatcher
        self._open: dict[str, str] = {}  # ids that clients know, to those that workers know

    async def Generate(  # noqa: N802 - named by the protocol
        self, message: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        try:
            async for response in self._generate(message, context.time_remaining()):
                yield response
        except Exception as error:  # the outermost loop of a call: what is no TwinpoolError becomes Internal
            if not isinstance(error, TwinpoolError):
                log.exception("a request failed")
            await abort(context, error)

    async def _generate(
        self, message: pb.GenerateRequest, deadline_s: float | None
    ) -> AsyncIterator[pb.GenerateResponse]:
        request_id = message.request_id or secrets.token_hex(8)
        if request_id in self._open:
            raise InvalidRequest("request_id", f"{request_id!r} is in use")
        request = await self._accept(message)
        flight = self._dispatcher.submit(request, deadline_s)
        self._open[request_id] = request.request_id
        is_chat = message.WhichOneof("prompt") == "chat"
        try:
            async for response in self._responses(flight, request_id, () if is_chat else request.token_ids):
                yield response
        finally:  # a client that leaves, or whose deadline passes, ends this generator
            del self._open[request_id]
            self._dispatcher.finish(request.request_id)

    async def Cancel(self, message: pb.CancelRequest, context: Any) -> pb.CancelResponse:  # noqa: N802, ARG002
        internal_id = self._open.get(message.request_id)
        return pb.CancelResponse(found=internal_id is not None and self._dispatcher.cancel(internal_id))

    async def ListModels(self, message: Any, context: Any) -> pb.ListModelsResponse:  # noqa: N802, ARG002
        model = pb.Model(
            id=self._config.model_id,
            max_model_len=self._config.max_model_len,
            vocab_size=self._shape.vocab_size,
            has_tokenizer=self._tokenizer is not None,
        )
        return pb.ListModelsResponse(models=[model])

    async def _accept(self, message: pb.GenerateRequest) -> Any:
        if message.ByteSize() > MAX_INLINE_TEXT:
            return await asyncio.to_thread(self._intake.accept, message)
        return self._intake.accept(message)

    async def _responses(
        self, flight: Flight, request_id: str, before: Sequence[int]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """``before``: ids that the answer's text continues."""
        detokenizer = Detokenizer(self._tokenizer, before) if self._tokenizer is not None else None
        while True:
            piece = await flight.next_piece()
            response = pb.GenerateResponse(
                request_id=request_id,
                index=piece.index,
                token_ids=piece.token_ids,
                text=_text(detokenizer, piece),
                finish_reason=finish_reason_to_proto(piece.finish_reason),
            )
            if piece.finish_reason is not None:
                response.usage.CopyFrom(_usage(flight))
                response.timings.CopyFrom(_timings(flight))
            yield response
            if piece.finish_reason is not None:
                return


def _text(detokenizer: Detokenizer | None, piece: Piece) -> str:
    if detokenizer is None:
        return ""
    text = detokenizer.push(piece.token_ids)
    return text + detokenizer.finish() if piece.finish_reason is not None else text


def _usage(flight: Flight) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=flight.request.num_prompt_tokens,
        completion_tokens=flight.record.num_tokens,
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
