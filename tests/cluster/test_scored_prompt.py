"""The logprobs of a long prompt: they fit into a message, and no other stream waits while it is put together."""

import asyncio
import threading
from pathlib import Path

import pytest

from tests.cluster.local_cluster import make_plan, running
from tests.cluster.modelled_text import write_text_model
from twinpool.cluster import generation_service
from twinpool.cluster.answer import Answer
from twinpool.cluster.flight import Piece
from twinpool.cluster.grpc_options import CLIENT_MESSAGE_BYTES
from twinpool.cluster.intake import MAX_PROMPT_SCORES, Call
from twinpool.core.messages import FinishReason, Goal, Request
from twinpool.core.sampling import MAX_LOGPROBS, SamplingParams
from twinpool.model.tokenizer import TextTokenizer
from twinpool.protos.twinpool.v1 import generation_pb2 as pb

LARGEST_ID = 2**20
LONGEST_TOKEN = b" " * 192  # the largest vocabularies have tokens of up to 128 spaces


class LongTokens(TextTokenizer):
    """Every token is as long as tokens are."""

    def __init__(self) -> None:
        pass

    def text_bytes(self, token_id: int) -> bytes:
        return LONGEST_TOKEN


@pytest.mark.parametrize("num_top", [0, MAX_LOGPROBS])
def test_the_most_logprobs_that_are_told_fit_into_a_message(num_top: int) -> None:
    prompt = (LARGEST_ID,) * (MAX_PROMPT_SCORES // (1 + num_top))
    sampling = SamplingParams(max_tokens=1, seed=1, prompt_logprobs=num_top)
    request = Request("r", 1, prompt, len(prompt), sampling, Goal(1, 1))
    answer = Answer(Call((request,), sampling, (), "", True), 0, "r", None)
    answer._tokenizer = LongTokens()
    ids, logprobs = [LARGEST_ID] * num_top, [-1.5] * num_top
    one = pb.TokenLogprobs(token_id=LARGEST_ID, logprob=-1.5, top_ids=ids, top_logprobs=logprobs)
    scores = [one] * (len(prompt) - 1)
    message = answer.take(Piece(0, (5,), FinishReason.LENGTH, (), scores))
    assert len(message.prompt_logprobs) == len(prompt) - 1
    assert message.ByteSize() < CLIENT_MESSAGE_BYTES


@pytest.mark.slow
def test_the_message_about_a_long_prompt_is_put_together_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[tuple[int, bool]] = []
    take = Answer.take

    def noting_take(answer: Answer, piece: Piece) -> pb.GenerateResponse:
        threads.append((len(piece.prompt_logprobs), threading.current_thread() is threading.main_thread()))
        return take(answer, piece)

    monkeypatch.setattr(Answer, "take", noting_take)
    monkeypatch.setattr(generation_service, "MAX_INLINE_SCORES", 50)

    async def scenario() -> None:
        async with running(make_plan(1, 1, model=write_text_model(tmp_path))) as cluster:
            for num_tokens in (51, 52):
                prompt = list(range(300, 300 + num_tokens))
                result = await cluster.client.generate(prompt, max_tokens=2, temperature=0.0, prompt_logprobs=1)
                assert [scored.token_id for scored in result.prompt_logprobs] == prompt[1:]

    asyncio.run(scenario())
    assert {pair for pair in threads if pair[0]} == {(50, True), (51, False)}
