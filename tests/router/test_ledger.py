"""What follows each failure, by example."""

import pytest

from twinpool.core.errors import AttemptsExhausted, Corrupted, Internal
from twinpool.core.messages import FailureKind, FinishReason, Goal, Request
from twinpool.core.sampling import SamplingParams, TokenLogprobs
from twinpool.router.ledger import Accepted, Ledger
from twinpool.router.recovery import Decision, GiveUp, Retarget, Retry
from twinpool.router.route import Route

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
PAIR, LOCAL, ALONE = Route("p", "d", "test"), Route("d", "d", "test"), Route("p", None, "test")
PROMPT = (1, 2, 3)


def request(max_tokens: int = 10, request_id: str = "r") -> Request:
    return Request(request_id, 0, PROMPT, len(PROMPT), SamplingParams(max_tokens=max_tokens), Goal(1, 1))


def opened(route: Route = PAIR, max_tokens: int = 10, max_attempts: int = 3) -> Ledger:
    ledger = Ledger(max_attempts)
    ledger.open(request(max_tokens), now=100.0)
    ledger.dispatched("r", route)
    return ledger


def fail(ledger: Ledger, kind: FailureKind, from_worker: str, epoch: int = 0) -> Decision | None:
    return ledger.failure("r", epoch, kind, from_worker, "test", now=107.0)


def test_decode_tokens_wait_for_the_first() -> None:
    ledger = opened()
    assert ledger.delta("r", 0, 1, (8,)) == Accepted(0)
    assert ledger.delta("r", 0, 0, (7,)) == Accepted(0, (7, 8))


def test_an_end_is_told_once_and_later_words_count_for_nothing() -> None:
    ledger = opened(LOCAL)
    assert ledger.delta("r", 0, 0, (7, 8), STOP) == Accepted(0, (7, 8), STOP)
    assert ledger.delta("r", 0, 0, (7, 8), STOP) == Accepted(0)
    assert fail(ledger, FailureKind.INTERNAL, "d") is None
    assert ledger.worker_lost("d", 0.0) == []
    assert ledger.cancel("r") == ()
    ledger.close("r")
    assert "r" not in ledger
    assert ledger.delta("r", 0, 2, (9,)) == Accepted(2)
    ledger.check()


def test_a_first_token_that_ends_the_answer_releases_the_decode_worker() -> None:
    assert opened(PAIR).delta("r", 0, 0, (7,), STOP).release == ("d",)
    assert opened(ALONE, max_tokens=1).delta("r", 0, 0, (7,), LENGTH).release == ()


def test_an_end_after_the_handoff_releases_nobody() -> None:
    ledger = opened(PAIR)
    ledger.delta("r", 0, 0, (7,))
    assert ledger.delta("r", 0, 1, (8,), STOP).release == ()


def test_a_retry_goes_on_from_the_accepted_tokens_with_its_first_arrival() -> None:
    ledger = opened()
    ledger.delta("r", 0, 0, (7,))
    ledger.delta("r", 0, 1, (8,))
    ledger.delta("r", 0, 5, (9,))  # beyond a gap: never accepted
    decision = fail(ledger, FailureKind.INTERNAL, "d")
    assert isinstance(decision, Retry)
    assert decision.request.token_ids == (*PROMPT, 7, 8)
    assert (decision.request.epoch, decision.request.age_s, decision.request.num_emitted) == (1, 7.0, 2)
    assert (decision.avoid, decision.release) == (frozenset({"d"}), ("p", "d"))
    assert ledger.delta("r", 0, 2, (66,)) == Accepted(2)  # the old epoch is dropped, dispatched or not
    ledger.dispatched("r", PAIR)
    assert ledger.delta("r", 0, 2, (66,)) == Accepted(2)
    assert ledger.delta("r", 1, 2, (9,)) == Accepted(2, (9,))


def test_logprobs_are_accepted_with_their_tokens_whatever_attempt_sent_them() -> None:
    def scored(*token_ids: int) -> tuple[TokenLogprobs, ...]:
        return tuple(TokenLogprobs(token_id, -1.0) for token_id in token_ids)

    ledger = opened()
    assert ledger.delta("r", 0, 1, (8,), None, scored(8)) == Accepted(0)
    assert ledger.delta("r", 0, 0, (7,), None, scored(7)).logprobs == scored(7, 8)
    ledger.delta("r", 0, 5, (9,), None, scored(9))  # beyond a gap: never accepted
    fail(ledger, FailureKind.INTERNAL, "d")
    ledger.dispatched("r", PAIR)
    assert ledger.delta("r", 0, 2, (66,), None, scored(66)).logprobs == ()
    assert ledger.delta("r", 1, 2, (9, 10), STOP, scored(9, 10)) == Accepted(2, (9, 10), STOP, (), scored(9, 10))


def test_one_failure_has_one_consequence() -> None:
    ledger = opened()
    assert fail(ledger, FailureKind.PEER_LOST, "d") is not None
    assert fail(ledger, FailureKind.PEER_LOST, "p") is None
    assert ledger.worker_lost("p", 0.0) == []
    ledger.dispatched("r", LOCAL)
    assert fail(ledger, FailureKind.PEER_LOST, "p", epoch=0) is None


def test_words_of_workers_not_on_the_route_count_for_nothing() -> None:
    assert fail(opened(), FailureKind.INTERNAL, "x") is None


def test_losing_the_prefill_worker_before_the_handoff_is_a_retry() -> None:
    ledger = opened()
    ledger.delta("r", 0, 0, (7,))
    (decision,) = ledger.worker_lost("p", 101.0)
    assert isinstance(decision, Retry)
    assert decision.request.token_ids == (*PROMPT, 7)
    assert (decision.avoid, decision.release, decision.kind) == (frozenset({"p"}), ("d",), FailureKind.WORKER_LOST)


def test_losing_the_prefill_worker_after_the_handoff_disturbs_nothing() -> None:
    ledger = opened()
    ledger.delta("r", 0, 0, (7,))
    ledger.delta("r", 0, 1, (8,))
    assert ledger.worker_lost("p", 101.0) == []
    assert ledger.delta("r", 0, 2, (9,)) == Accepted(2, (9,))
    (decision,) = ledger.worker_lost("d", 102.0)
    assert isinstance(decision, Retry)
    assert decision.release == ()


def test_losing_the_prefill_worker_with_its_token_unsaid_is_a_retry_although_decode_speaks() -> None:
    ledger = opened()
    ledger.delta("r", 0, 1, (8,))
    (decision,) = ledger.worker_lost("p", 101.0)
    assert isinstance(decision, Retry)
    assert decision.request.token_ids == PROMPT


@pytest.mark.parametrize("said", [(), (7,)])
def test_a_failed_transfer_keeps_its_source_and_its_prompt(said: tuple[int, ...]) -> None:
    ledger = opened()
    ledger.delta("r", 0, 0, said)
    decision = fail(ledger, FailureKind.TRANSFER_FAILED, "p")
    assert isinstance(decision, Retarget)
    assert (decision.request.epoch, decision.request.token_ids) == (1, PROMPT)
    assert (decision.parked_on, decision.avoid, decision.release) == ("p", frozenset({"d"}), ("d",))
    ledger.dispatched("r", Route("p", "e", "test"))
    assert ledger.delta("r", 1, 0, (7,)).token_ids == (() if said else (7,))
    assert ledger.delta("r", 0, 1, (66,)) == Accepted(1)
    assert ledger.delta("r", 1, 1, (8,)) == Accepted(1, (8,))


def test_the_first_token_of_a_prefill_counts_under_the_epoch_it_was_ordered_with() -> None:
    ledger = opened()
    fail(ledger, FailureKind.TRANSFER_FAILED, "p")
    assert ledger.delta("r", 0, 0, (7,)) == Accepted(0, (7,))
    ledger.dispatched("r", Route("p", "e", "test"))
    assert ledger.delta("r", 0, 0, (7,)) == Accepted(1)
    (retry,) = ledger.worker_lost("p", 0.0)
    assert isinstance(retry, Retry)
    ledger.dispatched("r", PAIR)
    assert ledger.delta("r", 0, 1, (66,)) == Accepted(1)


def test_a_first_token_that_ends_the_answer_releases_parked_kv() -> None:
    ledger = opened()
    fail(ledger, FailureKind.TRANSFER_FAILED, "p")
    assert ledger.delta("r", 0, 0, (7,), STOP) == Accepted(0, (7,), STOP, ("p",))


def test_losing_the_worker_that_holds_parked_kv_is_a_retry() -> None:
    ledger = opened()
    fail(ledger, FailureKind.TRANSFER_FAILED, "p")
    (decision,) = ledger.worker_lost("p", 101.0)
    assert isinstance(decision, Retry)
    assert decision.avoid == {"p", "d"}
    assert decision.release == ()


def test_a_transfer_that_only_the_source_thinks_failed_disturbs_nothing() -> None:
    ledger = opened()
    ledger.delta("r", 0, 0, (7,))
    ledger.delta("r", 0, 1, (8,))
    assert fail(ledger, FailureKind.TRANSFER_FAILED, "p") is None


def test_a_failed_transfer_told_by_its_target_keeps_the_source() -> None:
    decision = fail(opened(), FailureKind.TRANSFER_FAILED, "d")
    assert isinstance(decision, Retarget)
    assert (decision.parked_on, decision.avoid, decision.release) == ("p", frozenset({"d"}), ("d",))


@pytest.mark.parametrize(
    ("kind", "num_retries", "error"),
    [
        (FailureKind.INTERNAL, 2, AttemptsExhausted),
        (FailureKind.PEER_LOST, 2, AttemptsExhausted),
        (FailureKind.CORRUPTED, 1, Corrupted),
        (FailureKind.UNANSWERABLE, 0, Internal),
    ],
)
def test_attempts_are_bounded(kind: FailureKind, num_retries: int, error: type[Exception]) -> None:
    ledger = opened()
    for epoch in range(num_retries):
        assert isinstance(fail(ledger, kind, "d", epoch), Retry)
        ledger.dispatched("r", PAIR)
    decision = fail(ledger, kind, "d", num_retries)
    assert isinstance(decision, GiveUp)
    assert isinstance(decision.error, error)
    assert "test" in str(decision.error)
    assert decision.release == ("p", "d")
    assert ledger.num_dispatched == ledger.num_waiting == 0


def test_a_request_that_kills_every_worker_ends() -> None:
    ledger = opened(LOCAL)
    for _ in range(2):
        ledger.worker_lost("d", 0.0)
        ledger.dispatched("r", LOCAL)
    (decision,) = ledger.worker_lost("d", 0.0)
    assert isinstance(decision, GiveUp)
    assert str(decision.error) == "3 attempts failed, the last with worker_lost: d was lost"


def test_failed_transfers_cost_attempts_too() -> None:
    ledger = opened(max_attempts=1)
    assert isinstance(fail(ledger, FailureKind.TRANSFER_FAILED, "p"), GiveUp)


def test_preemptions_cost_no_attempt() -> None:
    ledger = opened()
    for epoch in range(20):
        assert isinstance(fail(ledger, FailureKind.PREEMPTED, "d", epoch), Retry)
        ledger.dispatched("r", PAIR)
    assert ledger.entry("r").attempts == 1


def test_cancel_names_the_workers_and_is_idempotent() -> None:
    ledger = opened()
    assert ledger.cancel("r") == ("p", "d")
    assert ledger.cancel("r") == ()
    assert ledger.cancel("unknown") == ()
    ledger.close("r")


def test_an_open_id_is_not_opened_again_nor_forgotten() -> None:
    ledger = opened()
    with pytest.raises(AssertionError, match="r is open"):
        ledger.open(request(), 0.0)
    with pytest.raises(AssertionError, match="r has not ended"):
        ledger.close("r")


def test_an_attempt_is_dispatched_once() -> None:
    with pytest.raises(AssertionError, match="dispatched to dispatched"):
        opened().dispatched("r", PAIR)


def test_losing_a_worker_touches_only_its_requests() -> None:
    ledger = Ledger()
    for request_id, route in (("b", PAIR), ("a", LOCAL), ("c", ALONE)):
        ledger.open(request(request_id=request_id), 0.0)
        ledger.dispatched(request_id, route)
    decisions = ledger.worker_lost("d", 1.0)
    assert [decision.request.request_id for decision in decisions if isinstance(decision, Retry)] == ["a", "b"]
    assert (ledger.num_waiting, ledger.num_dispatched) == (2, 1)
    ledger.check()
