"""Conversions lose no field, fill in defaults, and refuse by name what workers could not run."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import Internal, InvalidRequest
from twinpool.core.messages import FailureKind, FinishReason, Goal, Request, WorkerAddress
from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.protos import convert
from twinpool.protos.twinpool.v1 import generation_pb2, worker_pb2

GOAL = Goal(ttft_s=0.5, tpot_s=0.05)

sampling_params = st.builds(
    SamplingParams,
    max_tokens=st.integers(5, 2**20),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0.001, 1),
    seed=st.integers(0, 2**64 - 1),
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=64).map(tuple),
)
requests = st.builds(
    Request,
    request_id=st.text(st.characters(codec="utf-8"), min_size=1),
    epoch=st.integers(0, 2**32 - 1),
    token_ids=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=8).map(tuple),
    num_prompt_tokens=st.integers(1, 4),
    sampling=sampling_params,
    goal=st.builds(Goal, ttft_s=st.floats(0.001, 86_400), tpot_s=st.floats(0.001, 86_400)),
    priority=st.integers(-(2**31), 2**31 - 1),
    age_s=st.floats(0, 1_000),
    tenant_salt=st.text(st.characters(codec="utf-8")),
    choice=st.integers(0, 2**32 - 1),
    lossless_kv=st.booleans(),
)


def make_request(**changes: object) -> Request:
    request = Request("r1", 2, (1, 2, 3, 9), 3, SamplingParams(seed=7), GOAL, priority=-1, age_s=0.25, tenant_salt="t")
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


@given(requests)
def test_a_request_comes_back_equal_through_bytes(request: Request) -> None:
    wire = convert.request_to_proto(request).SerializeToString()
    if request.num_emitted >= request.sampling.max_tokens:
        return
    assert convert.request_from_proto(worker_pb2.RequestSpec.FromString(wire)) == request


def test_every_field_of_the_messages_and_of_the_values_is_converted() -> None:
    sampling_names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert sampling_names == set(generation_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
    assert sampling_names == {*convert.SAMPLING_SCALARS, "stop", "stop_token_ids", "logit_bias"}
    request_names = {field.name for field in dataclasses.fields(Request)}
    assert request_names == set(worker_pb2.RequestSpec.DESCRIPTOR.fields_by_name)


def test_all_of_sampling_travels() -> None:
    params = SamplingParams(
        max_tokens=99, min_tokens=3, temperature=0.5, top_k=7, top_p=0.5, min_p=0.25, repetition_penalty=1.5,
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias=((1, 2.0), (5, -1.0)), stop=("a", "b"),
        stop_token_ids=(4, 2), ignore_eos=True, logprobs=4, prompt_logprobs=0, n=2, seed=1,
    )  # fmt: skip
    defaults = SamplingParams()
    assert all(getattr(params, field.name) != getattr(defaults, field.name) for field in dataclasses.fields(params))
    assert convert.sampling_from_proto(convert.sampling_to_proto(params)) == params


def test_logprobs_travel() -> None:
    logprobs = TokenLogprobs(7, -0.5, ((9, -0.25), (7, -0.5)))
    assert convert.logprobs_from_proto(convert.logprobs_to_proto(logprobs)) == logprobs


def test_logprobs_whose_alternatives_do_not_pair_are_refused() -> None:
    with pytest.raises(Internal, match="more ids"):
        convert.logprobs_from_proto(generation_pb2.TokenLogprobs(top_ids=[1, 2], top_logprobs=[0.0]))


def test_unset_sampling_fields_take_the_defaults() -> None:
    assert convert.sampling_from_proto(generation_pb2.SamplingParams()) == SamplingParams()
    assert convert.sampling_from_proto(generation_pb2.SamplingParams(temperature=0)).temperature == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", -0.1),
        ("temperature", 101.0),
        ("top_p", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2**40),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("max_tokens", 2**62),
        ("min_p", float("nan")),
        ("n", 129),
        ("n", -1),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("min_tokens", 257),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", 2.5),
        ("frequency_penalty", float("nan")),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", [1] * 65),
        ("logit_bias", {3: float("nan")}),
        ("logit_bias", {2**31: 1.0}),
    ],
)
def test_sampling_outside_its_limits_is_refused_by_name(field: str, value: object) -> None:
    message = generation_pb2.SamplingParams(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest) as caught:
        convert.sampling_from_proto(message)
    assert caught.value.field == f"sampling.{field}"


def test_an_unset_goal_is_none_and_a_bad_one_is_refused_by_name() -> None:
    assert convert.goal_from_proto(generation_pb2.GenerateRequest()) is None
    assert convert.goal_from_proto(generation_pb2.GenerateRequest(goal=convert.goal_to_proto(GOAL))) == GOAL
    for bad in (0.0, -1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(InvalidRequest) as caught:
            convert.goal_from_proto(
                generation_pb2.GenerateRequest(goal=generation_pb2.Goal(ttft_s=1.0, tpot_s=bad)),
            )
        assert caught.value.field == "goal.tpot_s"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("request_id", {"request_id": ""}),
        ("num_prompt_tokens", {"num_prompt_tokens": 0}),
        ("num_prompt_tokens", {"num_prompt_tokens": 5}),
        ("num_prompt_tokens", {"token_ids": ()}),
        ("sampling.max_tokens", {"sampling": SamplingParams(max_tokens=1, seed=1)}),
        ("age_s", {"age_s": float("nan")}),
        ("age_s", {"age_s": -1.0}),
        ("age_s", {"age_s": 1e12}),
    ],
)
def test_an_order_that_no_worker_could_run_is_refused_by_name(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.request_from_proto(convert.request_to_proto(make_request(**changes)))
    assert caught.value.field == field


def test_an_order_without_seed_or_goal_is_refused() -> None:
    for field, path in (("goal", "goal"), ("sampling", "sampling.seed")):
        spec = convert.request_to_proto(make_request())
        spec.ClearField(field)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest) as caught:
            convert.request_from_proto(spec)
        assert caught.value.field == path


def test_a_request_without_seed_is_never_sent() -> None:
    with pytest.raises(Internal):
        convert.request_to_proto(make_request(sampling=SamplingParams()))


def test_an_address_comes_back_equal_and_an_unset_one_is_refused() -> None:
    address = WorkerAddress("prefill-0", "a1", "127.0.0.1:5000")
    assert convert.address_from_proto(convert.address_to_proto(address)) == address
    with pytest.raises(Internal):
        convert.address_from_proto(worker_pb2.WorkerAddress())


def test_every_finish_reason_comes_back_equal_and_others_are_refused() -> None:
    for reason in (None, *FinishReason):
        assert convert.finish_reason_from_proto(convert.finish_reason_to_proto(reason)) is reason
    assert len(generation_pb2.FinishReason.values()) == len(FinishReason) + 1
    with pytest.raises(Internal):
        convert.finish_reason_from_proto(77)  # type: ignore[arg-type]


def test_every_failure_kind_but_a_lost_worker_comes_back_equal_and_others_are_refused() -> None:
    for kind in set(FailureKind) - {FailureKind.WORKER_LOST}:
        assert convert.failure_kind_from_proto(convert.failure_kind_to_proto(kind)) is kind
    with pytest.raises(Internal):
        convert.failure_kind_to_proto(FailureKind.WORKER_LOST)
    for unknown in (0, 77):
        with pytest.raises(Internal):
            convert.failure_kind_from_proto(unknown)  # type: ignore[arg-type]
