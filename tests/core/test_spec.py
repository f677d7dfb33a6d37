"""The cluster's keys: limits, defaults, rules across keys, and what a model must allow."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from twinpool.core.messages import Goal, Role
from twinpool.core.spec import ClusterSpec, check_against_model, cluster_schema
from twinpool.core.spec_fields import MAX_PORT, dotted, is_loopback
from twinpool.core.spec_file import check_cluster
from twinpool.core.spec_requests import GoalSpec

ROOT = Path(__file__).resolve().parents[2]


def build(**sections: Any) -> dict[str, Any]:
    """A cluster that is right, but for the sections given."""
    pools = {"prefill": {"workers": 1}, "decode": {"workers": 1}}
    return {"name": "test", "model": {"path": "dummy:tiny"}, "pools": pools} | sections


def good(**sections: Any) -> ClusterSpec:
    spec, problems = check_cluster(build(**sections))
    assert problems == []
    assert spec is not None
    return spec


def problems_of(**sections: Any) -> dict[str, str]:
    spec, problems = check_cluster(build(**sections))
    assert (spec is None) == bool(problems)
    return {dotted(problem.path): problem.what for problem in problems}


def test_the_smallest_cluster_gets_every_default():
    spec = good()
    assert spec.kv.memory == 256 * 1024**2
    assert spec.pools.mixed.workers == 0
    assert spec.goals == {"default": GoalSpec(ttft_s=1.0, tpot_s=0.05)}
    assert spec.gateway.host == spec.transfer.interface == "127.0.0.1"


def test_values_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        good().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [("256MiB", 2**28), ("1GiB", 2**30), ("1.5 KiB", 1536), ("64MB", 64_000_000), ("5B", 5), ("7", 7), (4096, 4096)],
)
def test_memory_is_a_size_with_a_unit_or_bytes(memory: object, expected: int):
    assert good(kv={"memory": memory}).kv.memory == expected


@pytest.mark.parametrize(
    "memory",
    ["", "MiB", "-1MiB", "1e3", "1 PB", "0x10", "\u0661MiB", "1MiB ", "nan", 0, -1, 1.5, True, None, [], "9" * 99],
)
def test_memory_that_is_no_size_is_refused(memory: object):
    assert list(problems_of(kv={"memory": memory})) == ["kv.memory"]


@pytest.mark.parametrize(
    ("section", "value", "path"),
    [
        ("name", "Demo", "name"),
        ("name", "x" * 41, "name"),
        ("name", "../x", "name"),
        ("name", "a\n", "name"),
        ("model", {"path": ""}, "model.path"),
        ("model", {"path": "dummy:x", "max_model_len": 1}, "model.max_model_len"),
        ("model", {"path": "dummy:x", "dtype": "int8"}, "model.dtype"),
        ("kv", {"block_tokens": 4}, "kv.block_tokens"),
        ("kv", {"block_tokens": 24}, "kv.block_tokens"),
        ("kv", {"block_tokens": 512}, "kv.block_tokens"),
        ("kv", {"parked_share": 0}, "kv.parked_share"),
        ("kv", {"parked_share": 1}, "kv.parked_share"),
        ("kv", {"parked_share": float("nan")}, "kv.parked_share"),
        ("kv", {"prefix_cache": 1}, "kv.prefix_cache"),
        ("batching", {"chunk_tokens": 0}, "batching.chunk_tokens"),
        ("batching", {"max_running": "8"}, "batching.max_running"),
        ("transfer", {"link": "pigeon"}, "transfer.link"),
        ("transfer", {"interface": "0.0.0.0"}, "transfer.interface"),
        ("transfer", {"interface": "eth0"}, "transfer.interface"),
        ("router", {"policy": "best"}, "router.policy"),
        ("router", {"max_attempts": 0}, "router.max_attempts"),
        ("goals", {"default": {"ttft_s": 0, "tpot_s": 1}}, "goals.default.ttft_s"),
        ("goals", {"default": {"ttft_s": 1, "tpot_s": float("inf")}}, "goals.default.tpot_s"),
        ("goals", {"default": {"ttft_s": 1}}, "goals.default.tpot_s"),
        ("goals", {"A b": {"ttft_s": 1, "tpot_s": 1}}, "goals.'A b'"),
        ("goals", [1], "goals"),
        ("goals", {"default": {"ttft_s": 1, "tpot_s": 1, "on_miss": "cry"}}, "goals.default.on_miss"),
        ("goals", {"default": {"ttft_s": 1, "tpot_s": 1, "on_miss": "reject"}}, "goals.default.on_miss"),
        ("goals", {"default": {"ttft_s": 1, "tpot_s": 1, "deadline_s": 0}}, "goals.default.deadline_s"),
        ("router", {"aging_s": 0}, "router.aging_s"),
        ("tenants", {"a": {"tokens_per_s": 0}}, "tenants.a.tokens_per_s"),
        ("tenants", {"a": {"tokens_per_s": float("inf")}}, "tenants.a.tokens_per_s"),
        ("tenants", {"a": {"burst_tokens": 5}}, "tenants.a.burst_tokens"),
        ("tenants", {"a": {"tokens_per_s": 5, "burst_tokens": 0}}, "tenants.a.burst_tokens"),
        ("tenants", {"a": {"max_running": 0}}, "tenants.a.max_running"),
        ("tenants", {"a": {"weight": 0}}, "tenants.a.weight"),
        ("tenants", {"a": {"queue_share": 1.5}}, "tenants.a.queue_share"),
        ("tenants", {"A": {}}, "tenants.A"),
        ("gateway", {"grpc_port": MAX_PORT + 1}, "gateway.grpc_port"),
        ("gateway", {"grpc_port": -1}, "gateway.grpc_port"),
        ("gateway", {"replicas": 0}, "gateway.replicas"),
        ("gateway", {"host": "a b"}, "gateway.host"),
        ("ray", {"address": "ray://host:1"}, "ray.address"),
        ("ray", {"address": "host:0"}, "ray.address"),
        ("ray", {"object_store": "74MiB"}, "ray.object_store"),
        ("pools", {"mixed": {"workers": 1025}}, "pools.mixed.workers"),
        ("pools", {"mixed": {"workers": True}}, "pools.mixed.workers"),
        ("pools", {"mixed": {}}, "pools.mixed.workers"),
        ("pools", {"mixed": {"workers": 1, "threads": 0}}, "pools.mixed.threads"),
        ("pools", {"mixed": {"workers": 1, "threads": "all"}}, "pools.mixed.threads"),
        ("pools", {"mixed": {"workers": 1, "cores": "3-1"}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 1, "cores": "all"}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 1, "cores": "0,,1"}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 1, "cores": "0-2,1"}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 1, "cores": -1}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 1, "cores": True}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 2, "cores": 0}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 2, "cores": "0-2"}}, "pools.mixed.cores"),
        ("pools", {"mixed": {"workers": 2, "cores": "0-3", "threads": 3}}, "pools.mixed.threads"),
        ("model", {"path": "dummy:x", "deterministic": 1}, "model.deterministic"),
        ("transfer", {"codec": "fp4"}, "transfer.codec"),
        ("transfer", {"link": "shm", "codec": "int8"}, "transfer.codec"),
        ("transfer", {"link": "cuda_ipc", "codec": "fp8"}, "transfer.codec"),
        ("model", {"path": "dummy:x", "quantization": "int4"}, "model.quantization"),
        ("model", {"path": "dummy:x", "deterministic": True, "quantization": "int8"}, "model.quantization"),
    ],
)
def test_a_value_outside_its_limits_is_refused_at_its_key(section: str, value: object, path: str):
    assert list(problems_of(**{section: value})) == [path]


@pytest.mark.parametrize(
    ("section", "value", "path"),
    [
        ("pools", {"mixed": {"workers": 1, "tensor_parallel": 2}}, "pools.mixed.tensor_parallel"),
        ("pools", {"mixed": {"workers": 1, "pipeline_parallel": 2}}, "pools.mixed.pipeline_parallel"),
        ("transfer", {"link": "nixl"}, "transfer.link"),
    ],
)
def test_what_this_version_lacks_is_refused_by_name(section: str, value: object, path: str):
    problems = problems_of(**{section: value})
    assert list(problems) == [path]
    assert "is not supported by this version" in problems[path]


@pytest.mark.parametrize(
    ("section", "value", "path", "hint"),
    [
        ("kv", {"memroy": 1}, "kv.memroy", "did you mean memory?"),
        ("pools", {"mixed": {"workers": 1, "zzz": 1}}, "pools.mixed.zzz", "known: cores, hardware"),
        ("goals", {"b": {"ttft_s": 1, "tpot_s": 1, "prio": 1}}, "goals.b.prio", "did you mean priority?"),
        ("tenants", {"b": {"wieght": 1}}, "tenants.b.wieght", "did you mean weight?"),
        ("tenants", {"weight": {"zzz": 1}}, "tenants.weight.zzz", "known: burst_tokens, max_running"),
        ("rooter", {}, "rooter", "did you mean router?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(section: str, value: object, path: str, hint: str):
    problems = problems_of(**{section: value})
    assert list(problems) == [path]
    assert hint in problems[path]


@pytest.mark.parametrize(("prefill", "decode", "mixed"), [(p, d, m) for p in (0, 1) for d in (0, 1) for m in (0, 1)])
def test_pools_serve_with_a_mixed_worker_or_with_one_of_each_other_role(prefill: int, decode: int, mixed: int):
    pools = {"prefill": {"workers": prefill}, "decode": {"workers": decode}, "mixed": {"workers": mixed}}
    can_serve = mixed or (prefill and decode)
    assert list(problems_of(pools=pools)) == ([] if can_serve else ["pools"])


def test_a_pools_cores_are_shared_out_in_equal_slices_in_the_order_given():
    pool = good(pools={"mixed": {"workers": 3, "cores": "4-6, 0,9,2"}}).pools.mixed
    assert [pool.cores_of(index) for index in range(3)] == [(4, 5), (6, 0), (9, 2)]
    assert good(pools={"mixed": {"workers": 1, "cores": 7}}).pools.mixed.cores_of(0) == (7,)
    assert good().pools.prefill.cores_of(0) == ()


def test_deterministic_arithmetic_sends_kv_with_all_its_bits():
    model = {"path": "dummy:x", "deterministic": True}
    assert good(model=model).transfer.codec == "raw"
    for codec in ("int8", "auto"):
        assert list(problems_of(model=model, transfer={"codec": codec})) == ["transfer.codec"]


def test_deterministic_arithmetic_and_quantization_can_each_be_had():
    assert good(model={"path": "dummy:x", "deterministic": True}).model.deterministic
    assert good(model={"path": "dummy:x", "quantization": "int8"}).model.quantization == "int8"


def test_always_disaggregating_needs_both_pools():
    only_mixed = {"mixed": {"workers": 2}}
    assert list(problems_of(pools=only_mixed, router={"disaggregate": "always"})) == ["router.disaggregate"]
    assert good(router={"disaggregate": "always"}).router.disaggregate == "always"
    assert good(pools=only_mixed, router={"disaggregate": "never"}).pools.by_role()[Role.MIXED].workers == 2


def test_a_gateway_beyond_this_machine_must_be_asked_for():
    assert list(problems_of(gateway={"host": "0.0.0.0"})) == ["gateway.host"]
    assert good(gateway={"host": "0.0.0.0", "insecure_no_auth": True}).gateway.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("::", False), ("10.0.0.1", False),
     ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_only_addresses_of_this_machine_are_loopback(host: str, expected: bool):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("gateway", "paths"),
    [
        ({"grpc_port": 0, "http_port": 0}, []),
        ({"grpc_port": 9000, "http_port": 9000}, ["gateway.http_port"]),
        ({"grpc_port": 9000, "http_port": 9001, "replicas": 2}, ["gateway.http_port"]),
        ({"grpc_port": 9001, "http_port": 9000, "replicas": 2}, ["gateway.http_port"]),
        ({"grpc_port": 9000, "http_port": 9002, "replicas": 2}, []),
        ({"grpc_port": MAX_PORT, "http_port": 0, "replicas": 2}, ["gateway.grpc_port"]),
        ({"grpc_port": MAX_PORT, "http_port": 0, "host": "::", "replicas": 2}, ["gateway.host", "gateway.grpc_port"]),
    ],
)
def test_ports_of_replicas_neither_meet_nor_run_out(gateway: dict[str, Any], paths: list[str]):
    assert list(problems_of(gateway=gateway)) == paths


def test_all_problems_are_found_at_once():
    found = problems_of(
        name="?", kv={"memory": "big", "parked_share": 2}, router={"disaggregate": "always", "x": 1}, ray=3
    )
    assert list(found) == ["name", "kv.memory", "kv.parked_share", "router.x", "ray"]


def test_default_goal_and_priorities_become_what_requests_carry():
    spec = good(goals={"batch": {"ttft_s": 60, "tpot_s": 1, "priority": "low"}})
    assert set(spec.goals) == {"default", "batch"}
    assert spec.goals["batch"].goal == Goal(60.0, 1.0)
    ranks = [GoalSpec(ttft_s=1, tpot_s=1, priority=priority).priority_rank for priority in ("high", "normal", "low")]
    assert ranks == sorted(ranks)
    assert ranks[1] == 0


@given(
    max_model_len=st.integers(2, 5000),
    block_tokens=st.sampled_from([8, 16, 64, 256]),
    kv_token_bytes=st.integers(1, 5000),
    memory=st.integers(1, 2**24),
)
def test_memory_is_refused_exactly_when_one_longest_request_does_not_fit(
    max_model_len: int, block_tokens: int, kv_token_bytes: int, memory: int
):
    spec = good(
        model={"path": "dummy:x", "max_model_len": max_model_len}, kv={"block_tokens": block_tokens, "memory": memory}
    )
    problems = check_against_model(spec, kv_token_bytes=kv_token_bytes, max_position_embeddings=5000)
    num_blocks = memory // (block_tokens * kv_token_bytes)
    assert [problem.path for problem in problems] == (
        [("kv", "memory")] if num_blocks * block_tokens < max_model_len else []
    )


def test_the_memory_asked_for_is_enough():
    spec = good(model={"path": "dummy:x", "max_model_len": 100}, kv={"memory": "1MiB"})
    (problem,) = check_against_model(spec, kv_token_bytes=2**20, max_position_embeddings=100)
    assert problem.what.endswith("that takes 112MiB")
    spec = good(model={"path": "dummy:x", "max_model_len": 100}, kv={"memory": "112MiB"})
    assert check_against_model(spec, kv_token_bytes=2**20, max_position_embeddings=100) == ()


def test_a_context_longer_than_the_model_was_made_for_is_refused():
    spec = good(model={"path": "dummy:x", "max_model_len": 101})
    (problem,) = check_against_model(spec, kv_token_bytes=1, max_position_embeddings=100)
    assert problem.path == ("model", "max_model_len")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(section=st.sampled_from(sorted(ClusterSpec.model_fields)), key=st.text(max_size=8), value=json_values)
def test_any_value_anywhere_is_accepted_or_refused_in_single_lines(section: str, key: str, value: object):
    known = cluster_schema()["$defs"]
    for data in (value, {key: value}, *({name: value} for model in known.values() for name in model["properties"])):
        for path, what in problems_of(**{section: data}).items():
            assert path.startswith(section)
            assert "\n" not in path + what


def test_the_schema_accepts_what_loads_and_knows_every_key():
    validator = jsonschema.Draft202012Validator(cluster_schema())
    assert validator.is_valid(build())
    assert not validator.is_valid(build(kv={"memroy": 1}))
    assert not validator.is_valid(build(kv={"memory": "big"}))
    assert not validator.is_valid(build(pools={"mixed": {"workers": 1, "tensor_parallel": 2}}))
    assert validator.is_valid(build(transfer={"codec": "fp8"}))
    assert not validator.is_valid(build(transfer={"codec": "fp4"}))


def test_the_committed_schema_is_the_one_the_code_gives():
    assert json.loads((ROOT / "docs" / "cluster.schema.json").read_text()) == cluster_schema(), (
        "run: twinpool schema > docs/cluster.schema.json"
    )
