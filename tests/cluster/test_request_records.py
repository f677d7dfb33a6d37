"""What became of a call's requests is noted once each, in our own words, and never with a token of the prompt."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.local_cluster import make_plan, running
from twinpool.cluster.flight import Flights, Piece
from twinpool.cluster.gateway import Gateway
from twinpool.cluster.request_log import RequestLog
from twinpool.cluster.request_records import MAX_PIECES, PIECE_TOKENS, RequestRecorder, piece_hashes
from twinpool.core.errors import Cancelled, DeadlineExceeded, Internal, Overloaded, SpecError, TwinpoolError
from twinpool.core.messages import FinishReason, Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.simulator.traces.open import open_trace

KEY = hashlib.blake2b(b"key", digest_size=32).digest()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_flights(num: int, arrived_s: float, deadline_s: float = 1e9, num_prompt: int = 130) -> Flights:
    sampling = SamplingParams(max_tokens=50, seed=1)
    prompt = tuple(range(7000, 7000 + num_prompt))
    requests = [Request(f"r{i}", 1, prompt, num_prompt, sampling, Goal(2.0, 0.5), choice=i) for i in range(num)]
    return Flights(requests, arrived_s, deadline_s)


def recorded(path: Path, clock: Clock, act: Any) -> list[dict[str, Any]]:
    recorder = RequestRecorder(RequestLog(str(path)), secret="s", clock=clock, unix_clock=lambda: 1e9)
    act(recorder)
    recorder.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_completed_answer_is_told_with_its_times(tmp_path: Path) -> None:
    clock = Clock()
    flights = make_flights(1, 101.0)
    flight = flights.of_choice[0]
    flight.push(Piece(0, (1,), None), 101.5)
    flight.push(Piece(1, (2, 3), FinishReason.LENGTH), 102.0)
    flight.record.prefill_worker, flight.record.decode_worker, flight.record.kv_bytes = "p", "d", 9
    flights.end(0)
    clock.now = 109.0
    (line,) = recorded(tmp_path / "log", Clock(), lambda recorder: recorder.ended(flights, "chat", None))
    assert (line["arrival_unix_s"], line["arrival_s"]) == (1e9 + 1, 1.0)
    assert (line["prompt_tokens"], line["output_tokens"], line["max_tokens"]) == (130, 3, 50)
    assert (line["goal_class"], line["goal"]) == ("chat", {"ttft_s": 2.0, "tpot_s": 0.5})
    assert (line["ending"], line["why"], line["attempts"]) == ("completed", "", 1)
    assert (line["ttft_s"], line["tpot_s"], line["e2e_s"]) == (0.5, 0.25, 1.0)
    assert (line["workers"], line["kv_bytes"]) == ({"prefill": "p", "decode": "d"}, 9)
    assert (line["hash_tokens"], len(line["prefix_hashes"])) == (64, 2)


@pytest.mark.parametrize(
    ("error", "ending", "why"),
    [
        (None, "cancelled", ""),
        (asyncio.CancelledError(), "cancelled", ""),
        (Cancelled("by the client"), "cancelled", ""),
        (Overloaded("queue", 1.0), "rejected", "overloaded: queue; retry after 1 s"),
        (DeadlineExceeded("waiting"), "cut", "deadline exceeded while waiting"),
        (Internal("ValueError: 7001 7002"), "failed", "Internal"),
        (ValueError("7001 7002"), "failed", "ValueError"),
    ],
)
def test_each_way_to_end_has_its_word_and_no_error_is_quoted(
    tmp_path: Path, error: BaseException | None, ending: str, why: str
) -> None:
    flights = make_flights(1, 100.0)
    (line,) = recorded(tmp_path / "log", Clock(), lambda recorder: recorder.ended(flights, "default", error))
    assert (line["ending"], line["why"]) == (ending, why)
    assert (line["output_tokens"], line["ttft_s"], line["tpot_s"]) == (0, None, None)
    assert "7001" not in json.dumps(line)


def test_a_call_that_its_deadline_cancelled_was_cut(tmp_path: Path) -> None:
    flights = make_flights(1, 90.0, deadline_s=99.0)
    error = asyncio.CancelledError()
    (line,) = recorded(tmp_path / "log", Clock(), lambda recorder: recorder.ended(flights, "default", error))
    assert (line["ending"], line["e2e_s"]) == ("cut", 10.0)


def test_answers_of_one_call_end_each_in_its_own_way(tmp_path: Path) -> None:
    flights = make_flights(3, 100.0)
    for choice in (0, 2):
        flights.of_choice[choice].push(Piece(0, (1, 2), None), 100.0)
    flights.end(2)
    lines = recorded(tmp_path / "log", Clock(), lambda recorder: recorder.ended(flights, "default", Cancelled("gone")))
    assert [(line["ending"], line["output_tokens"]) for line in lines] == [
        ("cancelled", 2),
        ("cancelled", 0),
        ("completed", 2),
    ]


def test_a_refused_call_is_noted_for_each_of_its_requests(tmp_path: Path) -> None:
    requests = [flight.request for flight in make_flights(2, 0.0).of_choice]
    error: TwinpoolError = Overloaded("queue", 1.0)
    lines = recorded(tmp_path / "log", Clock(), lambda recorder: recorder.refused(requests, "default", error))
    assert [(line["ending"], line["arrival_s"], line["output_tokens"]) for line in lines] == [("rejected", 0.0, 0)] * 2


@given(st.lists(st.integers(0, 2**31 - 1), min_size=0, max_size=300), st.integers(0, 299))
def test_names_are_equal_up_to_the_first_piece_that_differs(prompt: list[int], place: int) -> None:
    names = piece_hashes(prompt, KEY)
    assert len(names) == len(prompt) // PIECE_TOKENS
    assert names == piece_hashes(prompt + [5] * (PIECE_TOKENS - 1 - len(prompt) % PIECE_TOKENS), KEY)
    if place < len(prompt):
        other = [*prompt[:place], (prompt[place] + 1) % 2**31, *prompt[place + 1 :]]
        shared = [one == two for one, two in zip(names, piece_hashes(other, KEY), strict=True)]
        assert shared == [piece < place // PIECE_TOKENS for piece in range(len(names))]
    if names:
        assert not set(names) & set(piece_hashes(prompt, hashlib.blake2b(b"other", digest_size=32).digest()))


def test_only_the_beginning_of_a_long_prompt_is_named() -> None:
    assert len(piece_hashes(range(PIECE_TOKENS * (MAX_PIECES + 3)), KEY)) == MAX_PIECES


def test_a_gateway_whose_log_cannot_be_written_does_not_start(tmp_path: Path) -> None:
    (config,) = make_plan(1, 1, request_log=str(tmp_path / "none" / "log")).gateways

    async def scenario() -> None:
        gateway = Gateway(config, clock=Clock())
        with pytest.raises(SpecError, match=r"gateway\.request_log: .* cannot be written"):
            await gateway.start()
        await gateway.stop()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_gateway_logs_what_its_clients_saw_and_the_log_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    prompt = list(range(300, 500))

    async def scenario() -> None:
        async with running(make_plan(1, 1, request_log=str(path), max_queued=2)) as cluster:
            results = [await cluster.client.generate(prompt, max_tokens=5 + i, n=1 + i) for i in range(2)]
            assert [len(result.choices) for result in results] == [1, 2]
            with pytest.raises(TwinpoolError):
                await cluster.client.generate(prompt, max_tokens=5, goal_class="nowhere")  # never offered
            stream = cluster.client.stream(prompt[:100], max_tokens=100, goal_class="batch")
            async with stream:
                async for _ in stream:
                    break
            await cluster.assert_idle()

    asyncio.run(scenario())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["ending"] for line in lines[:3]] == ["completed"] * 3
    assert [line["output_tokens"] for line in lines[:3]] == [5, 6, 6]
    assert {line["workers"]["decode"] for line in lines[:3]} == {"decode-0"}
    assert all(0 < line["ttft_s"] <= line["e2e_s"] for line in lines[:3])
    assert len({tuple(line["prefix_hashes"]) for line in lines[:3]}) == 1
    assert len(lines[0]["prefix_hashes"]) == 3
    assert lines[3]["prefix_hashes"] == lines[0]["prefix_hashes"][:1]
    assert (lines[3]["goal_class"], len(lines)) == ("batch", 4)
    assert lines[3]["ending"] in ("cancelled", "completed")
    requests = list(open_trace(path))
    assert [(request.prompt_tokens, request.output_tokens, request.max_tokens) for request in requests[:3]] == [
        (200, 5, 5),
        (200, 6, 6),
        (200, 6, 6),
    ]
