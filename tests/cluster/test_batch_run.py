"""Batches against a cluster in one process: every line gets its answer once, whatever the cluster does meanwhile."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.cluster.batch_files import Fields, by_id, chat, completion, read_lines
from tests.cluster.batch_runs import in_a_loop, put, run
from tests.cluster.local_cluster import make_plan, running
from twinpool.client.timeout import Timeout
from twinpool.cluster.batch.input_file import scan_input
from twinpool.cluster.batch.output_file import OutputFile
from twinpool.cluster.batch.run import BatchRun, GivenUp, RunSettings
from twinpool.cluster.batch.tally import as_summary, as_values, start_tally
from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal

pytestmark = pytest.mark.slow  # real sockets and real waits

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny"


@in_a_loop
async def test_every_request_is_answered_once_and_nothing_is_left_in_the_cluster(tmp_path: Path) -> None:
    put(tmp_path, [completion(f"r{i}", tuple(range(1, 2 + i % 9)), max_tokens=1 + i % 5, seed=i) for i in range(100)])
    async with running(make_plan(2, 2)) as cluster:
        tally = await run(tmp_path, cluster.addresses, concurrency=16)
        await cluster.assert_idle()
    answers = by_id(tmp_path / "out")
    assert set(answers) == {f"r{i}" for i in range(100)}
    usages = [answers[f"r{i}"]["response"]["body"]["usage"]["completion_tokens"] for i in range(100)]
    assert usages == [1 + i % 5 for i in range(100)]
    assert (tally.exit_code, tally.done, tally.completion_tokens) == (0, 100, sum(usages))
    assert {answer["response"]["status_code"] for answer in answers.values()} == {200}


@in_a_loop
async def test_bad_lines_are_answered_with_their_problem_and_hurt_nobody(tmp_path: Path) -> None:
    lines: list[Fields | str] = [
        completion("good"),
        completion("tools", tools=[]),
        "nonsense",
        completion("model", model="gpt-9"),
        completion("long", tuple(range(600))),
        completion("text", "a model without a tokenizer takes none"),
        chat("chat"),
        completion("id", (40_000,)),
        completion("named", model="test-model"),
    ]
    put(tmp_path, lines)
    async with running(make_plan()) as cluster:
        tally = await run(tmp_path, cluster.addresses)
        again = await run(tmp_path, cluster.addresses)
    answers = by_id(tmp_path / "out")
    errors = {key: answer["error"] for key, answer in answers.items() if answer["error"]}
    assert {key: (error["code"], error["param"], error["line"]) for key, error in errors.items()} == {
        "tools": ("invalid_request", "tools", 2),
        None: ("invalid_json", None, 3),
        "model": ("model_not_found", "model", 4),
        "long": ("invalid_request", "prompt", 5),
        "text": ("invalid_request", "prompt", 6),
        "chat": ("invalid_request", "messages", 7),
        "id": ("invalid_request", "prompt", 8),
    }
    assert answers["good"]["response"]["body"]["model"] == "test-model"
    assert (tally.failed, tally.done, tally.exit_code) == (7, 9, 1)
    assert (again.failed, again.before, again.answered, again.exit_code) == (7, 9, 0, 1)


@in_a_loop
async def test_choices_and_logprobs_arrive(tmp_path: Path) -> None:
    put(tmp_path, [completion("n", "import os", n=2, logprobs=2, echo=True, temperature=0), chat("c", logprobs=True)])
    async with running(make_plan(worker={"model": str(TINY), "kv_bytes": 1 << 24})) as cluster:
        assert (await run(tmp_path, cluster.addresses)).exit_code == 0
    answers = by_id(tmp_path / "out")
    first, second = answers["n"]["response"]["body"]["choices"]
    assert first["text"] == second["text"]  # greedy
    assert first["text"].startswith("import os")
    assert "".join(first["logprobs"]["tokens"]) == first["text"]
    content = answers["c"]["response"]["body"]["choices"][0]
    assert "".join(token["token"] for token in content["logprobs"]["content"]) == content["message"]["content"]


@pytest.mark.parametrize(
    ("goals", "asked", "used"), [(True, None, "batch"), (False, None, ""), (True, "default", "default")]
)
@in_a_loop
async def test_the_goal_class_is_batch_where_there_is_one(
    tmp_path: Path, goals: bool, asked: str | None, used: str
) -> None:
    put(tmp_path, [completion(f"r{i}") for i in range(20)])
    plan = make_plan() if goals else make_plan(goals={"default": Goal(10.0, 1.0)}, priorities={"default": 0})
    async with running(plan) as cluster:
        batch = scan_input(tmp_path / "in")
        with OutputFile(tmp_path / "out", batch.keys) as output:
            tally = start_tally(batch.keys, {}, 0.0)
            one = BatchRun(batch.lines(without=()), output, tally, RunSettings(goal_class=asked, tenant="acme"))
            await one.answer_all(cluster.addresses)
            assert one._goal_class == used
            assert list(cluster.gateway.dispatcher.waiting.tenants()) == ["acme"]
    assert tally.exit_code == 0


@in_a_loop
async def test_a_goal_class_that_does_not_exist_ends_the_run_before_any_line_is_answered(tmp_path: Path) -> None:
    put(tmp_path, [completion("a")])
    async with running(make_plan()) as cluster:
        with pytest.raises(SpecError, match="--goal-class: 'urgent' is not one of: batch, default"):
            await run(tmp_path, cluster.addresses, goal_class="urgent")
    assert read_lines(tmp_path / "out") == []


@in_a_loop
async def test_a_cluster_that_comes_late_is_waited_for(tmp_path: Path, free_port: int) -> None:
    put(tmp_path, [completion(f"r{i}") for i in range(5)])
    work = asyncio.create_task(run(tmp_path, [f"127.0.0.1:{free_port}"]))
    await asyncio.sleep(0.5)
    async with running(make_plan(grpc_port=free_port)):
        assert (await work).exit_code == 0
    assert len(by_id(tmp_path / "out")) == 5


@in_a_loop
async def test_a_cluster_that_stays_away_ends_the_run_and_another_goes_on(tmp_path: Path, free_port: int) -> None:
    put(tmp_path, [completion(f"r{i}") for i in range(5)])
    with pytest.raises(GivenUp, match=f"no request for 0.3 s: no connection .*{free_port}"):
        await run(tmp_path, [f"127.0.0.1:{free_port}"], patience_s=0.3)
    assert read_lines(tmp_path / "out") == []
    async with running(make_plan()) as cluster:
        assert (await run(tmp_path, cluster.addresses)).exit_code == 0
    assert len(by_id(tmp_path / "out")) == 5


@in_a_loop
async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    put(tmp_path, [completion(f"r{i}", tuple(range(100)), max_tokens=20) for i in range(12)])
    async with running(make_plan(max_queued=0, worker={"kv_bytes": 1 << 15})) as cluster:
        assert (await run(tmp_path, cluster.addresses, concurrency=12)).exit_code == 0
    assert len(by_id(tmp_path / "out")) == 12


@in_a_loop
async def test_requests_past_their_time_are_left_for_another_run(tmp_path: Path) -> None:
    put(tmp_path, [completion("slow", max_tokens=400), completion("fast", max_tokens=1)])
    timeout = Timeout(first_token_s=0.5, between_tokens_s=0.5, total_s=0.5)
    async with running(make_plan(worker={"model": "modelled:paced"})) as cluster:
        tally = await run(tmp_path, cluster.addresses, timeout=timeout)
    assert list(tally.unfinished) == ["slow"]
    assert (tally.done, tally.failed, tally.exit_code) == (1, 0, 1)
    assert set(by_id(tmp_path / "out")) == {"fast"}
    assert "left for another run: 'slow': DeadlineExceeded" in as_summary(tally, time.monotonic())
    assert as_values(tally, time.monotonic())["missing"] == 1


def test_problems_of_lines_that_were_mended_do_not_count() -> None:
    tally = start_tally({"a": 1, "b": 2}, {"a": True, 2: False}, 0.0)
    assert (tally.before, tally.failed, tally.total) == (1, 0, 2)
