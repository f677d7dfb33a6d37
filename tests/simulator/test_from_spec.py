"""Scenarios made of clusters' YAML, and what is said where something is missing."""

import subprocess
import sys
from typing import Any

import pytest

from twinpool.cluster.gateway import placement_settings
from twinpool.cluster.launch import GatewayConfig, plan_launch
from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal, Role
from twinpool.core.spec import ClusterSpec
from twinpool.model.modelled_shape import modelled_shape
from twinpool.router.estimate import LatencyModel, LinearForm, LinkCost
from twinpool.router.hardware import GPUS
from twinpool.router.latency_profile import KindProfile, LatencyProfile, link_part, part_of
from twinpool.router.roofline import RooflineForm
from twinpool.router.route import Policy
from twinpool.simulator.from_spec import ScenarioOptions, scenario_of
from twinpool.simulator.scenario import PrefixCache
from twinpool.simulator.truth import find_gpu

FORM = LinearForm(0.001, 0.002, 0.0, 0.003, 0.0, 0.004)


def spec(path: str = "modelled:paced", **more: Any) -> ClusterSpec:
    pools = {"prefill": {"workers": 1}, "decode": {"workers": 2}}
    return ClusterSpec.model_validate({"name": "c", "model": {"path": path}, "pools": pools} | more)


def profile(kv_token_bytes: int = 64, name: str = "prefill-tp1-pp1") -> LatencyProfile:
    one = KindProfile(
        role="prefill", kv_token_bytes=kv_token_bytes, steps=part_of(FORM), link=link_part(LinkCost(0.25, 1e6)),
        send_s=0.5, join_s=0.75,
    )  # fmt: skip
    return LatencyProfile(version=1, model="m", machine="x", dtype="float32", message_s=0.125, kinds={name: one})


def test_pools_become_workers_named_as_the_launcher_names_them():
    workers = scenario_of(spec()).workers
    assert [(worker.worker_id, worker.role) for worker in workers] == [
        ("prefill-0", Role.PREFILL),
        ("decode-0", Role.DECODE),
        ("decode-1", Role.DECODE),
    ]
    assert {worker.kind.name for worker in workers} == {"prefill-tp1-pp1", "decode-tp1-pp1"}


def test_knobs_are_the_yamls():
    scenario = scenario_of(
        spec(
            batching={"chunk_tokens": 128, "max_running": 8},
            router={"policy": "least_loaded", "disaggregate": "always", "max_queued": 5, "max_attempts": 2},
            gateway={"replicas": 2},
            kv={"parked_share": 0.5, "block_tokens": 32, "memory": "1MiB"},
            goals={"batch": {"ttft_s": 60.0, "tpot_s": 1.0, "priority": "low"}},
        )
    )
    assert (scenario.chunk_tokens, scenario.max_running, scenario.parked_share) == (128, 8, 0.5)
    assert (scenario.placement.policy, scenario.admission.max_queued) == (Policy.LEAST_LOADED, 5)
    assert (scenario.num_gateways, scenario.max_attempts) == (2, 2)
    assert (scenario.goals["batch"].goal, scenario.goals["batch"].priority) == (Goal(60.0, 1.0), 1)
    kind = scenario.workers[0].kind
    assert (kind.block_tokens, kind.num_blocks) == (32, 2**20 // kind.kv_token_bytes // 32)


def test_options_go_before_the_yaml():
    options = ScenarioOptions(policy="round_robin", num_gateways=3, kv_memory=2**20, tensor_parallel=2)
    scenario = scenario_of(spec(), options)
    assert (scenario.placement.policy, scenario.num_gateways) == (Policy.ROUND_ROBIN, 3)
    kind = scenario.workers[0].kind
    assert (kind.name, kind.gpus, kind.num_blocks) == ("prefill-tp2-pp1", 2, 2**20 // kind.kv_token_bytes // 16)


def test_a_modelled_shape_is_its_own_truth():
    shape, truth = modelled_shape("modelled:paced"), scenario_of(spec()).workers[0].kind.truth
    assert truth.seconds(100.0, 100.0**2, 0.0, 0.0) == pytest.approx(shape.latency.prefill_a_s + 100 * 5e-5)
    assert truth.seconds(0.0, 0.0, 50.0, 5.0) == pytest.approx(shape.latency.decode_alpha_s + 5e-4)


def test_a_model_with_weights_takes_what_its_gpus_sheet_says():
    scenario = scenario_of(spec("dummy:llama-3-8b", kv={"memory": "8GiB"}), ScenarioOptions(hardware="H100-SXM"))
    kind = scenario.workers[0].kind
    assert isinstance(kind.truth, RooflineForm)
    assert scenario.placement.latencies[kind.name].steps == kind.truth
    assert kind.price_per_hour == GPUS["H100-SXM"].price_per_hour
    assert kind.power is not None
    assert kind.nic_bytes_per_s == GPUS["H100-SXM"].nic_bytes_per_s


def test_the_yamls_hardware_goes_before_the_options():
    pools = {"mixed": {"workers": 1, "hardware": "A100-80GB"}}
    made = ClusterSpec.model_validate({"name": "c", "model": {"path": "dummy:llama-3-8b"}, "pools": pools})
    kind = scenario_of(made, ScenarioOptions(hardware="H100-SXM")).workers[0].kind
    assert kind.price_per_hour == GPUS["A100-80GB"].price_per_hour


def test_a_profile_goes_before_everything_else():
    scenario = scenario_of(spec(), ScenarioOptions(profile=profile()))
    kind = scenario.workers[0].kind
    assert (kind.truth, kind.link_latency_s, kind.nic_bytes_per_s) == (FORM, 0.25, 1e6)
    assert (kind.send_s, kind.join_s) == (0.5, 0.75)
    assert scenario.message_s == 0.125
    assert scenario.placement.latencies[kind.name] == LatencyModel(FORM, LinkCost(0.25, 1e6), 64, 512)


def test_a_table_is_the_truth_of_all_workers_and_what_the_router_believes():
    scenario = scenario_of(spec("dummy:tiny"), ScenarioOptions(table=FORM))
    assert {worker.kind.truth for worker in scenario.workers} == {FORM}
    assert {scenario.placement.latencies[worker.kind.name].steps for worker in scenario.workers} == {FORM}


def test_kv_memory_may_be_all_that_the_gpus_have_room_for():
    options = ScenarioOptions(hardware="L4", kv_memory="auto")
    kind = scenario_of(spec("dummy:llama-3-8b"), options).workers[0].kind
    weights_bytes = 16e9
    assert 0 < kind.num_blocks * kind.block_tokens * kind.kv_token_bytes < 24e9 - weights_bytes


@pytest.mark.parametrize(("hashes", "is_on", "found"), [(512, True, "hashes"), (0, True, "off"), (512, False, "off")])
def test_prompts_share_blocks_where_the_trace_names_them_and_the_yaml_allows_it(hashes: int, is_on: bool, found: str):
    scenario = scenario_of(spec(kv={"prefix_cache": is_on}), ScenarioOptions(hash_tokens=hashes))
    assert scenario.prefix_cache == PrefixCache(found)


@pytest.mark.parametrize(
    ("path", "options", "told"),
    [
        ("dummy:llama-3-8b", ScenarioOptions(), "pools.prefill.hardware: say which GPU here or with --hardware"),
        ("dummy:llama-3-70b", ScenarioOptions(hardware="L4"), "do not fit 1 x L4; the option --tensor-parallel"),
        ("dummy:llama-3-8b", ScenarioOptions(hardware="A10G"), "pools.prefill.hardware: A10G: its flops_per_s"),
        ("dummy:llama-3-8b", ScenarioOptions(hardware="L4", kv_memory=10**11), "--kv-memory: beside the model 1 x L4"),
        ("modelled:paced", ScenarioOptions(kv_memory="auto"), "--kv-memory: auto needs a model with weights"),
        ("modelled:paced", ScenarioOptions(kv_memory=10), "--kv-memory: has no room for one block of 16"),
        ("modelled:paced", ScenarioOptions(profile=profile(128)), "router.profile: was measured with a model of 128"),
        ("dummy:tiny", ScenarioOptions(profile=profile(1024, "prefill-tp4-pp1")), "has nothing about prefill-tp1-pp1"),
    ],
)
def test_what_is_missing_is_told_in_one_line_for_each_pool(path: str, options: ScenarioOptions, told: str):
    with pytest.raises(SpecError) as caught:
        scenario_of(spec(path), options)
    assert told in str(caught.value).split("\n")[0]
    assert len(str(caught.value).split("\n")) <= 2  # pools with workers


@pytest.mark.parametrize(("name", "found"), [("h100", "H100-SXM"), ("L4", "L4"), ("mi300x", "MI300X")])
def test_a_gpu_is_found_by_the_begin_of_its_name(name: str, found: str):
    assert find_gpu(name, "--hardware").name == found


@pytest.mark.parametrize("name", ["", "a1", "h", "gtx"])
def test_a_name_that_means_no_gpu_or_several_is_refused(name: str):
    with pytest.raises(SpecError, match="--hardware"):
        find_gpu(name, "--hardware")


def test_the_router_is_set_as_in_a_live_gateway(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "name: c\nmodel: {path: modelled:paced}\npools: {prefill: {workers: 1}, decode: {workers: 1}}\n"
        "router: {policy: least_loaded, disaggregate: always}\nbatching: {chunk_tokens: 64}\nray: {address: auto}\n"
    )
    config: GatewayConfig = plan_launch(file).gateways[0]
    live = placement_settings(config, modelled_shape("modelled:paced").kv_token_bytes)
    pools = {"prefill": {"workers": 1}, "decode": {"workers": 1}}
    router = {"policy": "least_loaded", "disaggregate": "always"}
    assert scenario_of(spec(pools=pools, router=router, batching={"chunk_tokens": 64})).placement == live


def test_the_simulator_needs_neither_torch_nor_ray_nor_grpc():
    modules = "from_spec, report, timeline, rate_search, truth, cluster"
    heavy = "[name for name in ('torch', 'ray', 'grpc') if name in sys.modules]"
    code = f"from twinpool.simulator import {modules}\nimport sys\nprint({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
