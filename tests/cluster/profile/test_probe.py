"""What a probe's mailbox makes of workers' messages."""

import asyncio

import pytest

from twinpool.cluster.profile.probe import Mailbox, make_request, wait_for
from twinpool.core.errors import Internal
from twinpool.core.messages import WorkerAddress
from twinpool.protos.twinpool.v1 import worker_pb2 as pb


def step(request_id: str, index: int, num_tokens: int = 1) -> pb.StepOutput:
    return pb.StepOutput(deltas=[pb.Delta(request_id=request_id, epoch=1, index=index, token_ids=[7] * num_tokens)])


def test_an_answer_is_over_when_all_its_tokens_came_from_whomever_and_in_any_order() -> None:
    async def play() -> list[bool]:
        mailbox = Mailbox()
        answer = mailbox.open(make_request("r", [1, 2], 3))
        seen = [answer.has_begun.is_set()]
        mailbox.stepped("decode-0", step("r", 1, 2))
        seen += [answer.has_begun.is_set(), answer.is_over.is_set()]
        mailbox.stepped("prefill-0", step("r", 0))
        await wait_for([answer])
        assert sorted(answer.token_times_s) == [0, 1, 2]
        return [*seen, answer.is_over.is_set()]

    assert asyncio.run(play()) == [False, True, False, True]


def test_messages_about_others_are_passed_over() -> None:
    async def play() -> None:
        mailbox = Mailbox()
        answer = mailbox.open(make_request("r", [1], 1))
        mailbox.stepped("w", step("another", 0))
        assert not answer.token_times_s

    asyncio.run(play())


@pytest.mark.parametrize("first_token", [False, True])
def test_a_failure_or_a_lost_worker_ends_the_wait_with_its_reason(first_token: bool) -> None:
    async def play(lose: bool) -> None:
        mailbox = Mailbox()
        answer = mailbox.open(make_request("r", [1], 1))
        if lose:
            mailbox.lost(WorkerAddress("decode-0", "", ""), "it fell over")
        else:
            mailbox.stepped("decode-0", pb.StepOutput(failures=[pb.Failure(request_id="r", reason="it fell over")]))
        await wait_for([answer], first_token=first_token)

    for lose in (False, True):
        with pytest.raises(Internal, match=r"decode-0.*it fell over"):
            asyncio.run(play(lose))
