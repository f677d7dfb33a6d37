"""From what a client sent to a Request that a router can place, or an InvalidRequest that names the field.

Knows the model's limits and its tokenizer; knows no worker.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from twinpool.cluster.launch import GatewayConfig
from twinpool.core.errors import InvalidRequest, ModelNotFound
from twinpool.core.messages import Goal, Request, SamplingParams
from twinpool.model.shape import ModelShape
from twinpool.model.tokenizer import TextTokenizer
from twinpool.protos.convert import goal_from_proto, sampling_from_proto
from twinpool.protos.twinpool.v1 import generation_pb2 as pb

MAX_REQUEST_ID = 128
BYTES_PER_TOKEN_LIMIT = 64  # longer texts than this per token of context are refused before tokenising


class Intake:
    """Checks, tokenises and completes requests."""

    def __init__(self, config: GatewayConfig, shape: ModelShape, tokenizer: TextTokenizer | None) -> None:
        self._config = config
        self._shape = shape
        self._tokenizer = tokenizer

    def accept(self, message: pb.GenerateRequest) -> Request:
        """Turn one message into a request of epoch 1.

        Raises:
            InvalidRequest: a field is wrong; ModelNotFound: another model was named. Nothing was started.
        """
        config = self._config
        if message.model not in ("", config.model_id):
            raise ModelNotFound(message.model, (config.model_id,))
        if len(message.request_id) > MAX_REQUEST_ID or not message.request_id.isprintable():
            raise InvalidRequest("request_id", f"must be at most {MAX_REQUEST_ID} printable characters")
        sampling = sampling_from_proto(message.sampling)
        goal, priority = self._goal(message)
        prompt_ids = self._prompt(message)
        return Request(
            request_id=f"{config.gateway_id}/{secrets.token_hex(8)}",  # never a client's: workers know requests by it
            epoch=1,
            token_ids=tuple(prompt_ids),
            num_prompt_tokens=len(prompt_ids),
            sampling=self._complete(sampling, len(prompt_ids), message.sampling.HasField("max_tokens")),
            goal=goal,
            priority=priority,
        )

    def _goal(self, message: pb.GenerateRequest) -> tuple[Goal, int]:
        name = message.goal_class or "default"
        if name not in self._config.goals:
            raise InvalidRequest("goal_class", f"{name!r} is not one of: {', '.join(sorted(self._config.goals))}")
        return goal_from_proto(message) or self._config.goals[name], self._config.priorities[name]

    def _complete(self, sampling: SamplingParams, num_prompt: int, is_explicit: bool) -> SamplingParams:
        room = self._config.max_model_len - num_prompt
        if is_explicit and sampling.max_tokens > room:
            reason = f"{num_prompt} prompt tokens leave room for {room} in a context of {self._config.max_model_len}"
            raise InvalidRequest("sampling.max_tokens", reason)
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        return replace(sampling, max_tokens=min(sampling.max_tokens, room), seed=seed)

    # --- prompts --------------------------------------------------------------------------------------------------

    def _prompt(self, message: pb.GenerateRequest) -> Sequence[int]:
        match message.WhichOneof("prompt"):
            case "text":
                field, ids = "text", self._encode_text(message.text)
            case "token_ids":
                field, ids = "token_ids", self._check_ids(message.token_ids.ids)
            case "chat":
                field, ids = "chat", self._encode_chat(message.chat.messages)
            case _:
                raise InvalidRequest("prompt", "is missing: give text, token_ids or chat")
        limit = self._config.max_model_len - 1
        if not ids:
            raise InvalidRequest(field, "is empty")
        if len(ids) > limit:
            raise InvalidRequest(field, f"has {len(ids)} tokens; this cluster takes prompts of at most {limit}")
        return ids

    def _encode_text(self, text: str) -> Sequence[int]:
        self._check_length("text", len(text))
        return self._tokens("text").encode(text) if text else []

    def _encode_chat(self, messages: Sequence[pb.ChatMessage]) -> Sequence[int]:
        if not messages:
            raise InvalidRequest("chat", "has no messages")
        self._check_length("chat", sum(len(message.content) + len(message.role) for message in messages))
        turns: list[Mapping[str, str]] = [{"role": m.role, "content": m.content} for m in messages]
        return self._tokens("chat").encode_chat(turns)

    def _tokens(self, field: str) -> TextTokenizer:
        if self._tokenizer is None:
            raise InvalidRequest(field, "this model has no tokenizer: send token_ids")
        return self._tokenizer

    def _check_length(self, field: str, num_characters: int) -> None:
        limit = self._config.max_model_len * BYTES_PER_TOKEN_LIMIT
        if num_characters > limit:
            raise InvalidRequest(field, f"has {num_characters} characters; at most {limit} are looked at")

    def _check_ids(self, ids: Sequence[int]) -> Sequence[int]:
        if len(ids) < self._config.max_model_len:
            worst = max(ids, default=0)
            if worst >= self._shape.vocab_size:
                raise InvalidRequest("token_ids", f"{worst} is not below the vocabulary size {self._shape.vocab_size}")
        return ids
