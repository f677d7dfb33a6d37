"""Turns the values of core/messages.py into protobuf messages and back, checking what comes in.

Knows no transport and decides nothing; a field missing here is a field that silently does not travel, so tests walk
all of them. Prompts are not converted here: only a gateway can tokenise them.
"""

import math

from twinpool.core.errors import Internal, InvalidRequest
from twinpool.core.messages import FailureKind, FinishReason, Goal, Request, WorkerAddress
from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.protos.twinpool.v1 import generation_pb2, worker_pb2

SAMPLING_SCALARS = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
    "logprobs",
    "prompt_logprobs",
    "n",
    "seed",
)
MAX_AGE_S = 30 * 86_400.0

_FINISH_TO_PROTO = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}
_FINISH_FROM_PROTO = {number: reason for reason, number in _FINISH_TO_PROTO.items()}
# A worker cannot report its own loss, so FailureKind.WORKER_LOST has no spelling on the wire.
_FAILURE_TO_PROTO = {
    FailureKind.TRANSFER_FAILED: worker_pb2.FAILURE_KIND_TRANSFER_FAILED,
    FailureKind.PREEMPTED: worker_pb2.FAILURE_KIND_PREEMPTED,
    FailureKind.CORRUPTED: worker_pb2.FAILURE_KIND_CORRUPTED,
    FailureKind.INTERNAL: worker_pb2.FAILURE_KIND_INTERNAL,
    FailureKind.PEER_LOST: worker_pb2.FAILURE_KIND_PEER_LOST,
    FailureKind.UNANSWERABLE: worker_pb2.FAILURE_KIND_UNANSWERABLE,
}
_FAILURE_FROM_PROTO = {number: kind for kind, number in _FAILURE_TO_PROTO.items()}


def sampling_to_proto(params: SamplingParams) -> generation_pb2.SamplingParams:
    """Return the message with every field set; only those of None stay unset."""
    message = generation_pb2.SamplingParams(stop=params.stop, stop_token_ids=params.stop_token_ids)
    for name in SAMPLING_SCALARS:
        value = getattr(params, name)
        if value is not None:
            setattr(message, name, value)
    for token_id, bias in params.logit_bias:
        message.logit_bias[token_id] = bias
    return message


def sampling_from_proto(message: generation_pb2.SamplingParams) -> SamplingParams:
    """Return the checked parameters; unset fields take the defaults of core/sampling.py.

    Raises:
        InvalidRequest: a field is outside its limits; it is named as ``sampling.<field>``.
    """
    given = {name: getattr(message, name) for name in SAMPLING_SCALARS if message.HasField(name)}
    params = SamplingParams(
        **given,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logit_bias=tuple(sorted(message.logit_bias.items())),
    )
    params.check()
    return params


def goal_to_proto(goal: Goal) -> generation_pb2.Goal:
    """Return the message of a goal."""
    return generation_pb2.Goal(ttft_s=goal.ttft_s, tpot_s=goal.tpot_s)


def goal_from_proto(parent: generation_pb2.GenerateRequest | worker_pb2.RequestSpec) -> Goal | None:
    """Return the checked ``parent.goal``, or None when it is unset. Raises InvalidRequest for a bad goal."""
    if not parent.HasField("goal"):
        return None
    goal = Goal(ttft_s=parent.goal.ttft_s, tpot_s=parent.goal.tpot_s)
    goal.check()
    return goal


def request_to_proto(request: Request) -> worker_pb2.RequestSpec:
    """Return the message that a worker needs; ``request.sampling.seed`` must be set."""
    if request.sampling.seed is None:
        raise Internal(f"request {request.request_id!r} has no seed")
    return worker_pb2.RequestSpec(
        request_id=request.request_id,
        epoch=request.epoch,
        token_ids=request.token_ids,
        num_prompt_tokens=request.num_prompt_tokens,
        sampling=sampling_to_proto(request.sampling),
        goal=goal_to_proto(request.goal),
        priority=request.priority,
        age_s=request.age_s,
        tenant_salt=request.tenant_salt,
        choice=request.choice,
        lossless_kv=request.lossless_kv,
    )


def request_from_proto(spec: worker_pb2.RequestSpec) -> Request:
    """Return the checked request of a gateway's order.

    Raises:
        InvalidRequest: a field is missing or contradicts another, so that no worker could run the request.
    """
    goal = goal_from_proto(spec)
    sampling = sampling_from_proto(spec.sampling)
    emitted = len(spec.token_ids) - spec.num_prompt_tokens
    refusals = {
        "request_id": not spec.request_id,
        "num_prompt_tokens": not 1 <= spec.num_prompt_tokens <= len(spec.token_ids),
        "sampling.max_tokens": emitted >= sampling.max_tokens,
        "sampling.seed": sampling.seed is None,
        "goal": goal is None,
        "age_s": not (math.isfinite(spec.age_s) and 0 <= spec.age_s <= MAX_AGE_S),
    }
    for field, refused in refusals.items():
        if refused:
            raise InvalidRequest(field, "is missing, or does not agree with the rest of the order")
    assert goal is not None
    return Request(
        request_id=spec.request_id,
        epoch=spec.epoch,
        token_ids=tuple(spec.token_ids),
        num_prompt_tokens=spec.num_prompt_tokens,
        sampling=sampling,
        goal=goal,
        priority=spec.priority,
        age_s=spec.age_s,
        tenant_salt=spec.tenant_salt,
        choice=spec.choice,
        lossless_kv=spec.lossless_kv,
    )


def logprobs_to_proto(logprobs: TokenLogprobs) -> generation_pb2.TokenLogprobs:
    """Return the message; its texts are for a gateway to add."""
    return generation_pb2.TokenLogprobs(
        token_id=logprobs.token_id,
        logprob=logprobs.logprob,
        top_ids=[token_id for token_id, _ in logprobs.top],
        top_logprobs=[logprob for _, logprob in logprobs.top],
    )


def logprobs_from_proto(message: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    """Return the value. Raises Internal when ids and logarithms of the alternatives are not as many."""
    if len(message.top_ids) != len(message.top_logprobs):
        raise Internal("a token's alternatives have more ids than logarithms, or fewer")
    return TokenLogprobs(
        message.token_id, message.logprob, tuple(zip(message.top_ids, message.top_logprobs, strict=True))
    )


def address_to_proto(address: WorkerAddress) -> worker_pb2.WorkerAddress:
    """Return the message of a worker's address."""
    return worker_pb2.WorkerAddress(
        worker_id=address.worker_id, incarnation=address.incarnation, address=address.address
    )


def address_from_proto(message: worker_pb2.WorkerAddress) -> WorkerAddress:
    """Return a worker's address; an unset message (no worker id) raises Internal."""
    if not message.worker_id:
        raise Internal("a worker address without a worker id")
    return WorkerAddress(worker_id=message.worker_id, incarnation=message.incarnation, address=message.address)


def finish_reason_to_proto(reason: FinishReason | None) -> generation_pb2.FinishReason:
    """Return the enum value; None (not ended yet) is UNSPECIFIED."""
    return generation_pb2.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH_TO_PROTO[reason]


def finish_reason_from_proto(value: generation_pb2.FinishReason) -> FinishReason | None:
    """Return the reason, or None for UNSPECIFIED. Raises Internal for a value this version does not know."""
    if value == generation_pb2.FINISH_REASON_UNSPECIFIED:
        return None
    if value not in _FINISH_FROM_PROTO:
        raise Internal(f"unknown finish reason {int(value)}")
    return _FINISH_FROM_PROTO[value]


def failure_kind_to_proto(kind: FailureKind) -> worker_pb2.FailureKind:
    """Return the enum value. Raises Internal for WORKER_LOST, which no worker can say of itself."""
    if kind not in _FAILURE_TO_PROTO:
        raise Internal(f"failure kind {kind.value!r} is never sent")
    return _FAILURE_TO_PROTO[kind]


def failure_kind_from_proto(value: worker_pb2.FailureKind) -> FailureKind:
    """Return the kind. Raises Internal for UNSPECIFIED and for a value this version does not know."""
    if value not in _FAILURE_FROM_PROTO:
        raise Internal(f"unknown failure kind {int(value)}")
    return _FAILURE_FROM_PROTO[value]
