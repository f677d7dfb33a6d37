"""A slow gateway gets all that was said, in order, in messages of a bounded size, with views as new as the tokens."""

import asyncio

from twinpool.cluster.grpc_options import WORKER_MESSAGE_BYTES
from twinpool.cluster.intake import MAX_PROMPT_SCORES
from twinpool.cluster.outbox import MAX_DELTAS, Outbox
from twinpool.core.messages import FailureKind
from twinpool.core.sampling import MAX_LOGPROBS, TokenLogprobs
from twinpool.model.sequence import Key, Token
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

LARGEST_ID = 2**20
LARGEST = TokenLogprobs(LARGEST_ID, -1.5, ((LARGEST_ID, -1.5),) * MAX_LOGPROBS)


def token(index: int, *, num_scores: int = 0, logprobs: TokenLogprobs | None = None) -> Token:
    scores = (LARGEST,) * num_scores
    return Token(Key("r" * 40, 1), "g", index, LARGEST_ID, logprobs=logprobs, prompt_logprobs=scores)


async def taken(outbox: Outbox) -> list[pb.StepOutput]:
    messages = []
    while True:
        try:
            async with asyncio.timeout(0):
                messages.append(await outbox.take())
        except TimeoutError:
            return messages


def test_what_waits_goes_in_one_message() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        outbox.set_view(pb.WorkerView(version=1))
        outbox.add_token(token(0, num_scores=1))
        outbox.add_token(token(1))
        outbox.add_failure(Key("s", 1), FailureKind.INTERNAL, "why")
        (message,) = await taken(outbox)
        assert [delta.index for delta in message.deltas] == [0, 1]
        assert (message.view.version, len(message.failures)) == (1, 1)
        assert await taken(outbox) == []

    asyncio.run(scenario())


def test_more_than_one_message_may_hold_goes_in_several() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        for index in range(2 * MAX_DELTAS + 1):
            outbox.add_token(token(index, logprobs=LARGEST))
        outbox.set_view(pb.WorkerView(version=2))
        messages = await taken(outbox)
        assert [len(message.deltas) for message in messages] == [MAX_DELTAS, MAX_DELTAS, 1]
        assert [delta.index for message in messages for delta in message.deltas] == list(range(2 * MAX_DELTAS + 1))
        assert messages[-1].view.version == 2
        assert max(message.ByteSize() for message in messages) < WORKER_MESSAGE_BYTES / 8

    asyncio.run(scenario())


def test_a_message_has_the_scores_of_one_prompt_at_most() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        for index in range(3):
            outbox.set_view(pb.WorkerView(version=index + 1))
            outbox.add_token(token(index, num_scores=MAX_PROMPT_SCORES // (1 + MAX_LOGPROBS)))
        messages = await taken(outbox)
        assert [[delta.index for delta in message.deltas] for message in messages] == [[0], [1], [2]]
        assert [message.view.version for message in messages] == [2, 3, 0]  # with its token or before it
        assert max(message.ByteSize() for message in messages) < WORKER_MESSAGE_BYTES / 8

    asyncio.run(scenario())
