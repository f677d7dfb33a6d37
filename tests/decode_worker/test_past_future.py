"""What predicted lengths buy: many more sequences at once than limits allow, and few that give way."""

from dataclasses import dataclass, field

import numpy as np

from twinpool.core.messages import FinishReason, Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.decode_worker.lengths import LengthHistory
from twinpool.decode_worker.service import DecodeService
from twinpool.model.block_pool import BlockPool
from twinpool.model.sequence import Sequence

BLOCK = 16
PROMPT, MAX_TOKENS = 64, 1024


class Amnesia(LengthHistory):
    """Never knows enough: every answer counts with its limit."""

    @property
    def is_enough(self) -> bool:
        return False


@dataclass
class Outcome:
    """Of a virtual worker that answers requests all there at once."""

    num_running: list[int] = field(default_factory=list)  # by step
    num_preempted: int = 0


def make_sequence(number: int, num_written: int) -> Sequence:
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, seed=1)
    token_ids = (1,) * (PROMPT + num_written)
    request = Request(f"r{number:04}", 1, token_ids, PROMPT, sampling, Goal(1.0, 1.0))
    return Sequence(request, "gateway-0", float(number), list(token_ids))


def answer_all(lengths: list[int], history: LengthHistory, num_blocks: int = 400) -> Outcome:
    """Run the service and its policy until every answer has its length; prefill takes no time."""
    service = DecodeService(BlockPool(num_blocks, BLOCK, prefix_cache=False), max_running=256)
    service.lengths = history
    outcome, num_ended = Outcome(), 0
    for number in range(len(lengths)):
        service.want(make_sequence(number, 0), is_local=True)
    while num_ended < len(lengths):
        plan = service.decide(0.0, busy_blocks=0, parked_blocks=0)
        rows, victims = service.rows(plan.decode_rows), service.rows(plan.preempt)
        for row in victims:
            service.drop(row.sequence.key)
            service.want(make_sequence(int(row.sequence.arrival_s), row.sequence.next_index), is_local=True)
        service.reserve_next(rows)
        service.stepped(rows)
        for row in rows:
            row.sequence.token_ids.append(1)
            has_ended = row.sequence.next_index == lengths[int(row.sequence.arrival_s)]
            service.apply(row, 1, FinishReason.STOP if has_ended else None, 0.0)
            num_ended += has_ended
        for _ in plan.grants if not victims else ():
            granted = service.grant_first()
            assert granted is not None
            granted.sequence.num_computed = len(granted.sequence.token_ids)
            granted.sequence.token_ids.append(1)
            service.local_ready(granted.sequence.key)
        outcome.num_preempted += len(victims)
        outcome.num_running.append(service.num_running)
        service.check()
    return outcome


def exponential(count: int, mean: float) -> list[int]:
    draws = np.random.default_rng(1).exponential(mean, count)
    return (2 + draws).astype(int).clip(max=MAX_TOKENS).tolist()


def test_short_answers_under_large_limits_run_many_at_once() -> None:
    known, lengths = exponential(1000, mean=30.0), exponential(200, mean=30.0)
    history = LengthHistory()
    for length in known:
        history.add(length)
    by_limits = answer_all(lengths, Amnesia())
    past_future = answer_all(lengths, history)
    assert max(past_future.num_running) >= 8 * max(by_limits.num_running)
    assert len(past_future.num_running) * 4 <= len(by_limits.num_running)  # steps until all are answered
    assert past_future.num_preempted <= 0.02 * len(lengths)
    assert by_limits.num_preempted == 0


def test_a_history_is_learnt_from_answers_that_end_here() -> None:
    history = LengthHistory()
    answer_all(exponential(300, mean=10.0), history)
    assert len(history) == 300
    assert history.predict(np.array([0]), np.array([MAX_TOKENS]), np.array([1]))[0] < 100


def test_answers_that_turn_long_all_at_once_still_end_and_teach_the_history() -> None:
    """No prediction holds here; the price is bounded."""
    history = LengthHistory()
    for _ in range(1000):
        history.add(8)
    outcome = answer_all([300] * 24, history, num_blocks=80)
    assert 0 < outcome.num_preempted <= 24
