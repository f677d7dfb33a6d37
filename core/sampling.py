"""Sampling parameters: their names, defaults and limits, which are defined here and nowhere else.

Knows no logits: how a token is chosen is model/sampling.py's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from twinpool.core.errors import InvalidRequest
from twinpool.core.limits import ByToken, Flag, Limit, Real, Several, Text, Whole

MAX_SEED = 2**64 - 1
MAX_OUTPUT_TOKENS = 2**20
MAX_TOKEN_ID = 2**31 - 1
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256

LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "max_tokens": Whole(1, MAX_OUTPUT_TOKENS),
        "min_tokens": Whole(0, MAX_OUTPUT_TOKENS),
        "temperature": Real(0, 100),
        "top_k": Whole(0, MAX_TOKEN_ID),
        "top_p": Real(0, 1, is_open=True),
        "min_p": Real(0, 1),
        "repetition_penalty": Real(0.01, 100),
        "presence_penalty": Real(-2, 2),
        "frequency_penalty": Real(-2, 2),
        "logit_bias": ByToken(Real(-100, 100), most=1024),
        "stop": Several(Text(MAX_STOP_CHARACTERS), most=MAX_STOPS),
        "stop_token_ids": Several(Whole(0, MAX_TOKEN_ID), most=64),
        "ignore_eos": Flag(),
        "logprobs": Whole(0, MAX_LOGPROBS, may_be_none=True),
        "prompt_logprobs": Whole(0, MAX_LOGPROBS, may_be_none=True),
        "n": Whole(1, 128),
        "seed": Whole(0, MAX_SEED, may_be_none=True),
    }
)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next token, and when to stop; the field names are the field's usual ones.

    Order of effects: ``logit_bias``, ``min_tokens`` (end tokens cannot be chosen), the three penalties; then with
    ``temperature`` 0 the best token, else temperature, ``top_k``, ``top_p``, ``min_p``, and one drawn of what they
    leave. ``top_k=0``, ``top_p=1`` and ``min_p=0`` switch those filters off. A ``seed`` of None lets the gateway draw
    one, after which sampling is a function of (seed, choice, index) and the tokens before. ``repetition_penalty``
    counts the prompt too, the other two the answer only. ``logprobs`` and ``prompt_logprobs`` ask for so many
    alternatives; 0 is that of the token itself only.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    seed: int | None = None

    def check(self) -> None:
        """Raise InvalidRequest for the first field outside its limits."""
        for name, limit in LIMITS.items():
            refusal = limit.refusal(getattr(self, name))
            if refusal is not None:
                raise InvalidRequest(f"sampling.{name}", refusal)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest("sampling.min_tokens", f"{self.min_tokens} is over max_tokens, {self.max_tokens}")

    @property
    def has_penalties(self) -> bool:
        """Whether what was written before changes what comes next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How probable the model found a token, and which tokens it found most probable.

    Natural logarithms of the model's own distribution: before temperature, bias, penalties and filters.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # best first
