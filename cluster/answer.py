"""Turns the pieces of one answer into messages for the client: text in whole characters, cut at a stop string.

Knows one choice of one call; neither workers nor how messages travel.
"""

from collections.abc import Iterable, Sequence

from twinpool.cluster.flight import Piece
from twinpool.cluster.intake import Call
from twinpool.core.errors import Internal
from twinpool.core.messages import FinishReason
from twinpool.model.detokenizer import Detokenizer
from twinpool.model.stop_strings import StopStrings
from twinpool.model.tokenizer import TextTokenizer
from twinpool.protos.convert import finish_reason_to_proto, logprobs_to_proto
from twinpool.protos.twinpool.v1 import generation_pb2 as pb


class Answer:
    """One choice: what of it the client has, and what of its text is held back."""

    def __init__(self, call: Call, choice: int, request_id: str, tokenizer: TextTokenizer | None) -> None:
        """``request_id``: the one that the client knows."""
        self._call = call
        self._choice = choice
        self._request_id = request_id
        self._tokenizer = tokenizer
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, call.before)
        self._stops = StopStrings(call.sampling.stop)
        self._is_plain = not call.sampling.stop and call.sampling.logprobs is None
        self._num_tokens = 0
        self._finish: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the client has."""
        return self._num_tokens

    @property
    def is_over(self) -> bool:
        return self._finish is not None

    def take(self, piece: Piece) -> pb.GenerateResponse:
        """The message for the next piece; tokens after the one that completes a stop string are left out."""
        if self._is_plain and self._num_tokens and piece.finish_reason is None:
            return self._take_middle(piece)
        is_first = self._num_tokens == 0
        text, num_kept = self._read(piece.token_ids)
        self._num_tokens += num_kept
        self._finish = FinishReason.STOP if self._stops.is_complete else piece.finish_reason
        if self._finish is not None and not self._stops.is_complete:
            text += self._flush()
        if is_first:
            text = self._call.echo + text
        response = pb.GenerateResponse(
            request_id=self._request_id,
            choice=self._choice,
            index=piece.index,
            token_ids=piece.token_ids[:num_kept],
            text=text,
            finish_reason=finish_reason_to_proto(self._finish),
        )
        if self._call.sampling.logprobs is not None:
            response.logprobs.extend(self._logprobs(piece)[:num_kept])
        if is_first and self._choice == 0:
            self._show_prompt(response, piece)
        return response

    def _take_middle(self, piece: Piece) -> pb.GenerateResponse:
        """The same for a piece of which only tokens and text can be new, as nearly all are."""
        self._num_tokens += len(piece.token_ids)
        text = "" if self._detokenizer is None else self._detokenizer.push(piece.token_ids)
        return pb.GenerateResponse(
            request_id=self._request_id, choice=self._choice, index=piece.index, token_ids=piece.token_ids, text=text
        )

    def _read(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """(text that may be shown, how many of the tokens count)."""
        if self._detokenizer is None:
            return "", len(token_ids)
        if not self._call.sampling.stop:
            return self._detokenizer.push(token_ids), len(token_ids)
        shown = []
        for position, token_id in enumerate(token_ids):  # one by one: each may be the one that completes a stop string
            text = self._detokenizer.push((token_id,))
            is_watched = self._num_tokens + position >= self._call.sampling.min_tokens
            shown.append(self._stops.push(text) if is_watched else text)
            if self._stops.is_complete:
                return "".join(shown), position + 1
        return "".join(shown), len(token_ids)

    def _flush(self) -> str:
        """The end of the text; half a character that never ended may complete a stop string still."""
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.finish()
        if self._num_tokens > self._call.sampling.min_tokens:
            text = self._stops.push(text)
        if self._stops.is_complete:
            self._finish = FinishReason.STOP
        return text + self._stops.finish()

    def _logprobs(self, piece: Piece) -> list[pb.TokenLogprobs]:
        if len(piece.logprobs) != len(piece.token_ids):
            raise Internal(f"{len(piece.token_ids)} tokens came with {len(piece.logprobs)} logprobs")
        messages = [logprobs_to_proto(logprobs) for logprobs in piece.logprobs]
        self._add_texts(messages)
        return messages

    def _show_prompt(self, response: pb.GenerateResponse, piece: Piece) -> None:
        prompt_ids = self._call.requests[0].token_ids
        if self._call.shows_prompt_ids:
            response.prompt_token_ids.extend(prompt_ids)
        if self._call.sampling.prompt_logprobs is not None:
            if len(piece.prompt_logprobs) != len(prompt_ids) - 1:
                raise Internal(f"{len(prompt_ids)} prompt tokens came with {len(piece.prompt_logprobs)} logprobs")
            response.prompt_logprobs.extend(piece.prompt_logprobs)
            self._add_texts(response.prompt_logprobs)

    def _add_texts(self, messages: Iterable[pb.TokenLogprobs]) -> None:
        if self._tokenizer is None:
            return
        text_bytes = self._tokenizer.text_bytes
        for message in messages:
            message.token = text_bytes(message.token_id)
            message.top_tokens.extend([text_bytes(token_id) for token_id in message.top_ids])
