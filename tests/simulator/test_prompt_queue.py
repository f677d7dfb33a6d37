"""The books of simulated prompts and of KV kept for sends, beside those of a live prefill service."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.messages import Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.simulator.attempt import Attempt, Destination
from twinpool.simulator.pool import CountedPool
from twinpool.simulator.prompt_queue import Prompt, PromptQueue

BLOCK_TOKENS, NUM_BLOCKS = 8, 40


def attempt(index: int, prompt: int = 20, priority: int = 0, epoch: int = 1) -> Attempt:
    sampling = SamplingParams(max_tokens=10)
    request = Request(f"r{index:03}", epoch, (0,) * prompt, prompt, sampling, Goal(1, 1), priority)
    return Attempt(request, index, 0, float(index), 10, (), 0)


def make_queue(parked_limit: int = 12) -> tuple[PromptQueue, CountedPool]:
    pool = CountedPool(NUM_BLOCKS)
    return PromptQueue(pool, BLOCK_TOKENS, parked_limit), pool


def assert_books_are_right(queue: PromptQueue, pool: CountedPool) -> None:
    kept = queue._outgoing.values()
    parked = sum(one.num_blocks for one in kept if one.is_computed and not one.is_granted)
    busy = sum(one.num_blocks for one in kept if one.is_granted or not one.is_computed)
    assert (queue.parked_blocks, queue.busy_blocks) == (parked, busy)
    prompts = [queue.prompt(row) for row in range(queue.num_waiting)]
    assert queue.waiting_tokens == sum(prompt.remaining_tokens for prompt in prompts)
    assert [prompt.attempt.age_order for prompt in prompts] == sorted(prompt.attempt.age_order for prompt in prompts)
    pool.check(queue.holdings())


def step(queue: PromptQueue, pool: CountedPool, budget: int = 32) -> list[Attempt]:
    """One step as an engine takes it; returns those whose first token is there."""
    plan = queue.decide(0.0, token_budget=budget, spare_blocks=pool.num_free)
    chosen = []
    for chunk in plan.chunks:
        prompt = queue.prompt(chunk.row)
        if prompt.started_s is None:
            queue.start(chunk.row, 0.0)
        prompt.chunk_tokens = min(chunk.num_tokens, prompt.remaining_tokens)
        chosen.append(prompt)
    for prompt in chosen:
        queue.advance(prompt)
    done = [prompt for prompt in chosen if not prompt.remaining_tokens]
    for prompt in done:
        queue.finish(prompt)
    return [prompt.attempt for prompt in done]


@given(st.data())
def test_what_is_kept_for_speed_is_what_prompts_and_sends_say(data: st.DataObject):
    queue, pool = make_queue()
    known: list[Attempt] = []
    deeds: list[Callable[[Attempt], object]] = [
        queue.granted, queue.ungranted, queue.release, queue.cancel,
    ]  # fmt: skip
    for index in range(data.draw(st.integers(5, 25))):
        deed = data.draw(st.sampled_from(["submit", "submit", "step", "step", "other"]))
        if deed == "submit":
            one = attempt(index, data.draw(st.integers(1, 100)), data.draw(st.integers(0, 1)))
            known.append(one)
            destination = data.draw(st.sampled_from([Destination.HANDOFF, Destination.HANDOFF, Destination.NOWHERE]))
            queue.submit(Prompt(one, destination, 0.0))
        elif deed == "step":
            step(queue, pool)
        elif known:
            one, deed_of = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(deeds))
            # A handoff is let go when nobody computes for it any more.
            if deed_of != queue.release or queue.find(one) is None:
                deed_of(one)
        assert_books_are_right(queue, pool)
    for one in known:
        queue.cancel(one)
    assert_books_are_right(queue, pool)
    assert pool.num_free == NUM_BLOCKS
    assert queue.attempts() == []


def test_the_youngest_parked_handoff_is_given_up_first():
    queue, pool = make_queue()
    old, granted, young = attempt(0, 8), attempt(1, 8), attempt(2, 8)
    for one in (old, granted, young):
        queue.submit(Prompt(one, Destination.HANDOFF, 0.0))
    assert queue.youngest_parked(set()) is None  # nothing is computed
    assert step(queue, pool) == [old, granted, young]
    queue.granted(granted)
    assert queue.youngest_parked(set()) is young
    assert queue.youngest_parked({young}) is old
    assert queue.youngest_parked({young, old}) is None


def test_a_handoff_that_goes_to_another_target_keeps_its_kv_under_the_new_attempt():
    queue, pool = make_queue()
    old, new = attempt(0), attempt(0, epoch=2)
    queue.submit(Prompt(old, Destination.HANDOFF, 0.0))
    step(queue, pool)
    queue.granted(old)
    assert queue.renew(old, new)
    assert (queue.outgoing_blocks(old), queue.outgoing_blocks(new)) == (0, 3)
    assert (queue.parked_blocks, queue.busy_blocks) == (3, 0)
    queue.release(old)
    assert pool.num_held == 3
    queue.release(new)
    assert pool.num_held == 0
    assert not queue.renew(old, new)


def test_what_may_be_parked_is_bounded_before_it_is_computed():
    queue, pool = make_queue(parked_limit=6)
    first, second, third = (attempt(index, 24) for index in range(3))
    for one in (first, second, third):
        queue.submit(Prompt(one, Destination.HANDOFF, 0.0))
    assert step(queue, pool, budget=100) == [first, second]
    assert queue.parked_blocks == 6
    assert step(queue, pool, budget=100) == []
    queue.granted(second)
    assert step(queue, pool, budget=100) == [third]
