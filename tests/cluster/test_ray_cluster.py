"""The real thing: `twinpool up` with Ray, worker processes, the demo model, and everything gone afterwards."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from twinpool.client.client import AsyncClient, Client
from twinpool.client.errors import ConnectionFailed
from twinpool.client.results import GenerationResult
from twinpool.core.errors import NoWorkers
from twinpool.model.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "models" / "tiny"
SPEC = """
name: {name}
model: {{path: {model}, max_model_len: 1024, dtype: float32}}
pools: {{prefill: {{workers: {prefill}}}, decode: {{workers: {decode}}}}}
kv: {{block_tokens: 16, memory: 64MiB}}
batching: {{chunk_tokens: 128}}
router: {{policy: round_robin, disaggregate: always}}
goals: {{default: {{ttft_s: 30, tpot_s: 5}}}}
gateway: {{grpc_port: 0, http_port: 0}}
"""

TOKENS = {"RAY_AUTH_MODE": "token"}  # what a local Ray does by default, a client of a running one has to be told

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


class Machine:
    """The command line, with a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, **TOKENS, "TWINPOOL_STATE_DIR": str(folder / "state")}

    def spec(self, name: str, prefill: int = 1, decode: int = 1) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(SPEC.format(name=name, model=MODEL, prefill=prefill, decode=decode))
        return path

    def run(self, *arguments: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "twinpool.cluster.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd="/", timeout=200)
        assert done.returncode == expect, done.stderr
        return done.stdout if expect == 0 else done.stderr

    def state(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / "state" / f"{name}.json").read_text())
        return values


def family_of(pid: int) -> list[psutil.Process]:
    supervisor = psutil.Process(pid)
    return [supervisor, *supervisor.children(recursive=True)]


def assert_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=30)
    alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"left running: {alive}"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def cluster(machine: Machine) -> Iterator[dict[str, Any]]:
    """2 prefill and 2 decode workers; and not one process of them afterwards."""
    machine.run("up", str(machine.spec("pairs", 2, 2)), "--detach")
    state = machine.state("pairs")
    family = family_of(state["supervisor_pid"])
    yield state
    machine.run("down", "pairs")
    assert_gone(family)


PROMPTS = ["def read_file(", "class Queue:\n", "import os\n\n\ndef main(", "x = [", "    return ", "try:\n    import "]


def test_status_names_every_process(machine: Machine, cluster: dict[str, Any]) -> None:
    status = json.loads(machine.run("status", "--json"))
    assert [worker["id"] for worker in status["workers"]] == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
    assert len({worker["pid"] for worker in status["workers"]} | {status["gateways"][0]["pid"]}) == 5
    assert {worker["state"] for worker in status["workers"]} == {"ready"}


def test_workers_and_gateways_run_at_the_priority_of_who_started_them(machine: Machine, cluster: Any) -> None:
    """Ray alone would put them behind everything else on the machine."""
    status = json.loads(machine.run("status", "--json"))
    members = [member["pid"] for member in status["workers"] + status["gateways"]]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in members} == {own}


def test_generate_from_any_directory_streams_text(machine: Machine, cluster: dict[str, Any]) -> None:
    result = json.loads(machine.run("generate", "def read_file(", "--max-tokens", "24", "--json"))
    assert result["usage"]["completion_tokens"] == len(result["token_ids"]) <= 24
    tokenizer = TextTokenizer.load(MODEL)
    assert tokenizer is not None
    answer = result["token_ids"]
    assert tokenizer.decode(tokenizer.encode("def read_file(") + answer) == "def read_file(" + result["text"]
    assert result["timings"]["prefill_worker"].startswith("prefill-")
    assert result["timings"]["decode_worker"].startswith("decode-")
    assert result["timings"]["kv_bytes"] > 0


def test_concurrent_requests_answer_as_one_at_a_time(cluster: dict[str, Any]) -> None:
    sampling = [{"max_tokens": 24, "temperature": float(i % 2) * 0.8, "seed": i} for i in range(12)]
    requests = [(PROMPTS[i % len(PROMPTS)] * (1 + i), chosen) for i, chosen in enumerate(sampling)]

    async def together() -> list[GenerationResult]:
        async with AsyncClient(cluster["grpc"]) as client:
            return await asyncio.gather(*(client.generate(prompt, **chosen) for prompt, chosen in requests))

    with Client(cluster["grpc"]) as client:
        alone = [client.generate(prompt, **chosen) for prompt, chosen in requests]
    results = asyncio.run(together())
    assert [result.token_ids for result in results] == [result.token_ids for result in alone]
    assert {result.timings.prefill_worker for result in results} == {"prefill-0", "prefill-1"}
    assert {result.timings.decode_worker for result in results} == {"decode-0", "decode-1"}


def test_a_second_cluster_of_the_name_is_refused(machine: Machine, cluster: dict[str, Any]) -> None:
    told = machine.run("up", str(machine.spec("pairs", 2, 2)), "--detach", expect=2)
    assert "already up" in told
    assert len(told.splitlines()) == 1


def test_leaving_streams_at_any_time_leaves_nothing(machine: Machine, cluster: dict[str, Any]) -> None:
    with Client(cluster["grpc"]) as client:
        for num_events in (0, 1, 2, 6):
            with client.stream(PROMPTS[0] * 40, max_tokens=200, temperature=0.0) as stream:
                for _, _ in zip(range(num_events), stream, strict=False):
                    pass
        deadline = time.monotonic() + 10
        while (status := client.status()).running_requests or any(w.running + w.waiting for w in status.workers):
            assert time.monotonic() < deadline, status
            time.sleep(0.05)


def test_a_killed_decode_worker_costs_no_token(machine: Machine, cluster: dict[str, Any]) -> None:
    with Client(cluster["grpc"]) as client:
        undisturbed = client.generate(PROMPTS[1], max_tokens=200, temperature=0.0, ignore_eos=True)
        with client.stream(PROMPTS[1], max_tokens=200, temperature=0.0, ignore_eos=True) as stream:
            for event in stream:
                if event.index == 5:
                    busy = [w for w in client.status().workers if w.role == "decode" and w.running]
                    os.kill(busy[0].pid, signal.SIGKILL)
            result = stream.result
        assert result.token_ids == undisturbed.token_ids
        assert result.timings.attempts == 2
        deadline = time.monotonic() + 60
        while any(worker.state != "ready" for worker in client.status().workers):
            assert time.monotonic() < deadline, "the worker was not replaced"
            time.sleep(0.2)


def test_a_stopped_worker_is_routed_around_and_taken_back_when_it_goes_on(cluster: dict[str, Any]) -> None:
    with Client(cluster["grpc"]) as client:
        undisturbed = client.generate(PROMPTS[2], max_tokens=120, temperature=0.0, ignore_eos=True)
        stopped: list[psutil.Process] = []
        try:
            with client.stream(PROMPTS[2], max_tokens=120, temperature=0.0, ignore_eos=True) as stream:
                for event in stream:
                    if event.index == 5 and not stopped:
                        busy = [w for w in client.status().workers if w.role == "decode" and w.running]
                        stopped.append(psutil.Process(busy[0].pid))
                        stopped[0].suspend()
            assert stream.result.token_ids == undisturbed.token_ids
            assert "lost" in {worker.state for worker in client.status().workers}
        finally:
            for process in stopped:
                process.resume()
        deadline = time.monotonic() + 30
        while any(worker.state != "ready" for worker in client.status().workers):
            assert time.monotonic() < deadline, "the worker was not taken back"
            time.sleep(0.1)
        assert stopped[0].is_running()


def test_a_killed_controller_is_replaced_and_nobody_else_notices(cluster: dict[str, Any]) -> None:
    with Client(cluster["grpc"]) as client:
        pids = {worker.id: worker.pid for worker in client.status().workers}
        (controller,) = controllers_of(cluster)
        with client.stream(PROMPTS[3], max_tokens=150, temperature=0.0, ignore_eos=True) as stream:
            for event in stream:
                if event.index == 5:
                    controller.kill()
            assert stream.result.timings.attempts == 1
        deadline = time.monotonic() + 30
        while controller in controllers_of(cluster) or not controllers_of(cluster):
            assert time.monotonic() < deadline, "no new controller"
            time.sleep(0.2)
        assert {worker.id: worker.pid for worker in client.status().workers} == pids


def controllers_of(cluster: dict[str, Any]) -> list[psutil.Process]:
    family = family_of(cluster["supervisor_pid"])
    return [process for process in family if process.is_running() and "ControllerActor" in process.name()]


def test_a_killed_gateway_comes_back_at_its_address(cluster: dict[str, Any]) -> None:
    with Client(cluster["grpc"]) as client:
        psutil.Process(client.status().gateways[0].pid).kill()
        deadline = time.monotonic() + 60
        while True:
            try:
                result = client.generate(PROMPTS[0], max_tokens=8, temperature=0.0)
                break
            except (ConnectionFailed, NoWorkers):
                assert time.monotonic() < deadline, "no gateway came back"
                time.sleep(0.2)
        assert result.usage.completion_tokens == 8
        assert {worker.state for worker in client.status().workers} == {"ready"}


def test_sigterm_of_the_supervisor_takes_everything_down(machine: Machine) -> None:
    machine.run("up", str(machine.spec("short-lived")), "--detach")
    pid = machine.state("short-lived")["supervisor_pid"]
    family = family_of(pid)
    os.kill(pid, signal.SIGTERM)
    assert_gone(family)
    assert "no cluster named 'short-lived'" in machine.run("status", "short-lived", expect=2)


def test_weights_that_cannot_be_read_end_the_start_with_one_line(machine: Machine) -> None:
    broken = machine.folder / "broken"
    shutil.copytree(MODEL, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    spec = machine.spec("broken-model")
    spec.write_text(spec.read_text().replace(str(MODEL), str(broken)))
    told = machine.run("up", str(spec), "--detach", expect=2)
    assert str(weights) in told
    assert len(told.splitlines()) == 1
    assert "no cluster" in machine.run("status", "broken-model", expect=2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if "broken-model" in " ".join(p.info["cmdline"] or ())]


HOST_A_RAY = """
import ray, sys
ray.init(address="local", include_dashboard=False, object_store_memory=80 * 2**20, configure_logging=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def foreign_ray() -> Iterator[str]:
    """A Ray that somebody else runs on this machine; it must outlive the clusters that attach to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOST_A_RAY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    family = family_of(process.pid)
    address = process.stdout.readline().strip()
    family += psutil.Process(process.pid).children(recursive=True)
    yield address
    assert process.poll() is None
    process.stdin.close()
    process.stdout.close()
    process.wait(30)
    assert_gone(family)


def test_a_cluster_attaches_to_a_running_ray_and_ctrl_c_leaves_it_alone(machine: Machine, foreign_ray: str) -> None:
    spec = machine.spec("guest")
    spec.write_text(spec.read_text() + f'ray: {{address: "{foreign_ray}"}}\n')
    command = [sys.executable, "-m", "twinpool.cluster.cli", "up", str(spec)]
    up_began = time.time()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=machine.environment
    ) as up:
        assert up.stdout is not None
        assert "guest serves gRPC at" in up.stdout.readline()
        with Client(machine.state("guest")["grpc"]) as client:
            workers = [psutil.Process(worker.pid) for worker in client.status().workers]
            assert client.generate("import ", max_tokens=4, temperature=0.0).usage.completion_tokens > 0
        up.send_signal(signal.SIGINT)
        controllers = [p for p in psutil.process_iter(["name"]) if "ControllerActor" in p.info["name"]]
        before_ours = [p for p in controllers if p.create_time() < up_began]
        assert up.wait(60) == 0
    assert_gone(workers)
    assert_gone([p for p in controllers if p not in before_ours])


def test_a_node_without_the_model_is_named(machine: Machine, foreign_ray: str, tmp_path: Path) -> None:
    """The check runs on the nodes of the Ray that is attached to; here the one node is this machine."""
    code = (
        "import ray, sys; from twinpool.cluster.nodes import check_nodes\n"
        f"ray.init(address='{foreign_ray}', configure_logging=False, log_to_driver=False)\n"
        f"check_nodes('{MODEL}'); check_nodes('dummy:tiny'); check_nodes('/no/such/model')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=os.environ | TOKENS
    )
    assert "SpecError" in done.stderr
    assert "has no model directory /no/such/model" in done.stderr
