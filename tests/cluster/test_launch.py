"""From YAML to launch plan: what is refused before anything starts, and what each process is told."""

import json
import os
import shutil
from pathlib import Path

import pytest

from twinpool.cluster.launch import plan_launch
from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal, Role
from twinpool.model.shape import load_shape

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "models" / "tiny"
POOLS = "pools: {prefill: {workers: 1}, decode: {workers: 2, threads: 3}}"


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        plan_launch(path)
    return str(caught.value)


def test_each_worker_and_gateway_gets_its_configuration(tmp_path: Path) -> None:
    text = f"name: two\nmodel: {{path: {TINY}, max_model_len: 512}}\n{POOLS}\ngateway: {{replicas: 2}}\n"
    plan = plan_launch(write(tmp_path, text))
    assert [(worker.worker_id, worker.role) for worker in plan.workers] == [
        ("prefill-0", Role.PREFILL),
        ("decode-0", Role.DECODE),
        ("decode-1", Role.DECODE),
    ]
    assert [worker.threads for worker in plan.workers][1:] == [3, 3]
    assert [gateway.grpc_port for gateway in plan.gateways] == [7070, 7071]
    assert {worker.cluster_secret for worker in plan.workers} == {gateway.cluster_secret for gateway in plan.gateways}
    assert plan.gateways[0].goals["default"] == Goal(1.0, 0.05)


def test_each_gateway_has_a_request_log_of_its_own_beside_the_yaml(tmp_path: Path) -> None:
    text = f"name: two\nmodel: {{path: {TINY}, max_model_len: 512}}\n{POOLS}\n"
    plan = plan_launch(write(tmp_path, text + "gateway: {replicas: 2, request_log: requests.jsonl}\n"))
    names = [f"{tmp_path}/requests.gateway-{index}.jsonl" for index in range(2)]
    assert [gateway.request_log for gateway in plan.gateways] == names
    assert plan_launch(write(tmp_path, text)).gateways[0].request_log == ""


def test_no_secret_shows_when_a_configuration_is_printed(tmp_path: Path) -> None:
    plan = plan_launch(write(tmp_path, f"name: two\nmodel: {{path: {TINY}}}\n{POOLS}\n"))
    assert plan.workers[0].cluster_secret not in repr(plan)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("dummy:llama-9-900b", "dummy:llama-9-900b: no such shape"),
        ("modelled:dreams", "modelled:dreams"),
        ("nowhere", "nowhere"),
    ],
)
def test_models_that_are_not_there_are_named(tmp_path: Path, model: str, expected: str) -> None:
    assert expected in refusal(write(tmp_path, f'name: two\nmodel: {{path: "{model}"}}\n{POOLS}\n'))


def test_a_model_that_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "gpt2" in refusal(write(tmp_path, f"name: two\nmodel: {{path: model}}\n{POOLS}\n"))


def test_kv_memory_too_small_for_one_request_names_the_line(tmp_path: Path) -> None:
    text = f"name: two\nmodel: {{path: {TINY}}}\n{POOLS}\nkv: {{memory: 100KiB}}\n"
    assert "cluster.yaml:4: kv.memory" in refusal(write(tmp_path, text))


def test_more_memory_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    text = f'name: two\nmodel: {{path: "dummy:llama-3-70b"}}\n{POOLS}\nkv: {{memory: 8GiB}}\n'
    told = refusal(write(tmp_path, text))
    assert "3 workers" in told
    assert "this machine has" in told


def test_a_context_longer_than_the_model_knows_is_refused(tmp_path: Path) -> None:
    text = f"name: two\nmodel: {{path: {TINY}, max_model_len: 100000}}\n{POOLS}\n"
    assert "max_position_embeddings" in refusal(write(tmp_path, text))


def test_workers_are_told_their_cores_and_their_arithmetic(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    pools = f"pools: {{mixed: {{workers: 1, cores: '{','.join(map(str, cores))}'}}}}"
    text = f"name: two\nmodel: {{path: {TINY}, deterministic: true}}\n{pools}\n"
    (worker,) = plan_launch(write(tmp_path, text)).workers
    assert worker.cores == tuple(cores)
    assert worker.threads == len(cores)
    assert (worker.deterministic, worker.quantization) == (True, "none")


def test_deterministic_workers_must_all_have_as_many_threads(tmp_path: Path) -> None:
    pools = POOLS.replace("{workers: 1}", "{workers: 1, threads: 2}")
    text = f"name: two\nmodel:\n  path: {TINY}\n  deterministic: true\n{pools}\n"
    told = refusal(write(tmp_path, text))
    assert "cluster.yaml:4: model.deterministic: needs the same threads on every worker, not 2 and 3" in told
    plan = plan_launch(write(tmp_path, text.replace("threads: 3", "threads: 2")))
    assert all(worker.deterministic for worker in plan.workers)


def test_cores_that_this_machine_lacks_are_refused_at_their_line(tmp_path: Path) -> None:
    pools = "pools:\n  mixed: {workers: 1, cores: 9998}"
    told = refusal(write(tmp_path, f"name: two\nmodel: {{path: {TINY}}}\n{pools}\n"))
    assert "cluster.yaml:4: pools.mixed.cores: core 9998 cannot be used here" in told
    elsewhere = f"name: two\nmodel: {{path: {TINY}}}\n{pools}\nray: {{address: 'host:6379'}}\n"
    assert plan_launch(write(tmp_path, elsewhere)).workers[0].cores == (9998,)


def test_a_core_of_two_pools_is_refused_at_its_line_where_both_are_on_one_machine(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    pools = f"pools:\n  prefill: {{workers: 1, cores: {core}}}\n  decode: {{workers: 1, cores: {core}}}"
    text = f"name: two\nmodel: {{path: {TINY}}}\n{pools}\n"
    told = refusal(write(tmp_path, text))
    assert f"cluster.yaml:5: pools.decode.cores: core {core} is pools.prefill's; a core belongs to one pool" in told
    plan = plan_launch(write(tmp_path, text + "ray: {address: 'host:6379'}\n"))
    assert [worker.cores for worker in plan.workers] == [(core,), (core,)]


def test_int8_weights_are_counted_when_memory_is_checked() -> None:
    plain, quantized = (load_shape("dummy:llama-3-8b", "bfloat16", how) for how in ("none", "int8"))
    assert quantized.weight_bytes > 1.4 * plain.weight_bytes


def test_a_codec_that_the_models_kv_does_not_take_is_refused_at_its_line(tmp_path: Path) -> None:
    text = f'name: two\nmodel: {{path: "modelled:instant"}}\n{POOLS}\ntransfer:\n  codec: int4\n'
    assert "cluster.yaml:5: transfer.codec: codec int4: head_dim 2 is not a multiple of 4" in refusal(
        write(tmp_path, text)
    )
    plan = plan_launch(write(tmp_path, text.replace("modelled:instant", str(TINY))))
    assert {worker.codec for worker in plan.workers} == {"int4"}
    assert plan_launch(write(tmp_path, text.replace("int4", "auto"))).workers[0].codec == "auto"
