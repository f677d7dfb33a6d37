"""From what a client sent to requests that a router can place, or an InvalidRequest that names the field.

Knows the model's limits and its tokenizer; knows no worker.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from twinpool.cluster.launch import GatewayConfig
from twinpool.core.errors import InvalidRequest, ModelNotFound
from twinpool.core.limits import Name
from twinpool.core.messages import Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.model.detokenizer import Detokenizer
from twinpool.model.shape import ModelShape
from twinpool.model.tokenizer import TextTokenizer
from twinpool.protos.convert import goal_from_proto, sampling_from_proto
from twinpool.protos.twinpool.v1 import generation_pb2 as pb
from twinpool.router.standing import DEFAULT_TENANT, USUAL, Standing

MAX_REQUEST_ID = 128
BYTES_PER_TOKEN_LIMIT = 64  # longer texts than this per token of context are refused before tokenising
MAX_CALL_TOKENS = 2**20  # of the prompt, counted once for each of the n answers: so much goes out in orders
MAX_PROMPT_SCORES = 2**16  # a prompt's tokens and their alternatives: they come in one message, whose size is bounded


@dataclass(frozen=True, slots=True)
class Call:
    """What one client asked for: a request for each answer, in order of choice, and how the answers are to be shown."""

    requests: tuple[Request, ...]
    sampling: SamplingParams  # of all; what the gateway does itself is left out of the requests
    before: tuple[int, ...]  # ids that the text of each answer continues
    echo: str  # what the text of each answer begins with
    shows_prompt_ids: bool
    standing: Standing = USUAL


class Intake:
    """Checks, tokenises and completes requests."""

    def __init__(self, config: GatewayConfig, shape: ModelShape, tokenizer: TextTokenizer | None) -> None:
        self._config = config
        self._shape = shape
        self._tokenizer = tokenizer

    def accept(self, message: pb.GenerateRequest) -> Call:
        """Turn one message into requests of epoch 1.

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
        standing = self._standing(message)
        self._check_sampling(sampling)
        is_chat = message.WhichOneof("prompt") == "chat"
        if message.echo and is_chat:
            raise InvalidRequest("echo", "cannot go with chat: the prompt is the template's text; send it as text")
        prompt_ids = tuple(self._prompt(message))
        sampling = self._complete(sampling, len(prompt_ids), message.sampling.HasField("max_tokens"))
        request = Request(
            request_id=f"{config.gateway_id}/{secrets.token_hex(8)}",  # never a client's: workers know requests by it
            epoch=1,
            token_ids=prompt_ids,
            num_prompt_tokens=len(prompt_ids),
            sampling=replace(sampling, stop=(), n=1),
            goal=goal,
            priority=priority,
            tenant_salt="" if standing.tenant == DEFAULT_TENANT else standing.tenant,
            lossless_kv=message.lossless_kv,
        )
        return Call(
            requests=(request, *(_sibling(request, choice) for choice in range(1, sampling.n))),
            sampling=sampling,
            before=() if is_chat else prompt_ids,
            echo=self._echo(message, prompt_ids) if message.echo else "",
            shows_prompt_ids=message.echo or sampling.prompt_logprobs is not None,
            standing=standing,
        )

    def _goal(self, message: pb.GenerateRequest) -> tuple[Goal, int]:
        name = message.goal_class or "default"
        if name not in self._config.goals:
            raise InvalidRequest("goal_class", f"{name!r} is not one of: {', '.join(sorted(self._config.goals))}")
        return goal_from_proto(message) or self._config.goals[name], self._config.priorities[name]

    def _standing(self, message: pb.GenerateRequest) -> Standing:
        """Whose request it is, and what its class says of it. Nobody has proved the tenant's name."""
        tenant = message.tenant or DEFAULT_TENANT
        why = Name().refusal(tenant)
        if why is not None:
            raise InvalidRequest("tenant", why)
        return replace(self._config.standings.get(message.goal_class or "default", USUAL), tenant=tenant)

    def _check_sampling(self, sampling: SamplingParams) -> None:
        """What only this model's shape and tokenizer can refuse."""
        named = {
            "logit_bias": [token_id for token_id, _ in sampling.logit_bias],
            "stop_token_ids": sampling.stop_token_ids,
        }
        for name, ids in named.items():
            self._check_vocabulary(f"sampling.{name}", ids)
        if sampling.stop and self._tokenizer is None:
            reason = "this model has no tokenizer, so its answers have no text to look in; use stop_token_ids"
            raise InvalidRequest("sampling.stop", reason)

    def _complete(self, sampling: SamplingParams, num_prompt: int, is_explicit: bool) -> SamplingParams:
        room = self._config.max_model_len - num_prompt
        why = f"{num_prompt} prompt tokens leave room for {room} in a context of {self._config.max_model_len}"
        if is_explicit and sampling.max_tokens > room:
            raise InvalidRequest("sampling.max_tokens", why)
        if sampling.min_tokens > room:
            raise InvalidRequest("sampling.min_tokens", why)
        if sampling.n * num_prompt > MAX_CALL_TOKENS:
            reason = f"{sampling.n} answers to {num_prompt} prompt tokens are over {MAX_CALL_TOKENS} tokens in all"
            raise InvalidRequest("sampling.n", reason)
        if sampling.prompt_logprobs is not None:
            _check_num_scores(num_prompt, sampling.prompt_logprobs)
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

    def _echo(self, message: pb.GenerateRequest, prompt_ids: Sequence[int]) -> str:
        """The prompt as it was sent; of ids, their text up to the end of a character."""
        if message.WhichOneof("prompt") == "text":
            return message.text
        return "" if self._tokenizer is None else Detokenizer(self._tokenizer).push(prompt_ids)

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
            self._check_vocabulary("token_ids", ids)
        return ids

    def _check_vocabulary(self, field: str, ids: Sequence[int]) -> None:
        worst = max(ids, default=0)
        if worst >= self._shape.vocab_size:
            raise InvalidRequest(field, f"{worst} is not below the vocabulary size {self._shape.vocab_size}")


def _check_num_scores(num_prompt: int, num_top: int) -> None:
    num_scores = num_prompt * (1 + num_top)
    if num_scores > MAX_PROMPT_SCORES:
        reason = f"{num_prompt} prompt tokens with {num_top} alternatives each are {num_scores} logprobs"
        raise InvalidRequest("sampling.prompt_logprobs", f"{reason}; at most {MAX_PROMPT_SCORES} are told")


def _sibling(request: Request, choice: int) -> Request:
    """Another answer to the same prompt, which the first one scores for all, so that this one may use its cache."""
    sampling = replace(request.sampling, prompt_logprobs=None)
    return replace(request, request_id=f"{request.request_id}.{choice}", sampling=sampling, choice=choice)
