"""The books of simulated rows, recomputed after every change."""

from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.messages import Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.decode_worker.batching import Column
from twinpool.simulator.attempt import Attempt
from twinpool.simulator.decode_rows import DecodeRows
from twinpool.simulator.pool import CountedPool

BLOCK_TOKENS = 8


def attempt(index: int, prompt: int, output: int, max_tokens: int) -> Attempt:
    sampling = SamplingParams(max_tokens=max_tokens)
    request = Request(f"r{index:03}", 1, (0,) * prompt, prompt, sampling, Goal(1, 1))
    return Attempt(request, index, 0, float(index), output, (), 0)


def make_rows(num_blocks: int) -> tuple[DecodeRows, CountedPool]:
    pool = CountedPool(num_blocks)
    return DecodeRows(pool, BLOCK_TOKENS, max_running=6), pool


def assert_books_are_right(rows: DecodeRows, pool: CountedPool) -> None:
    held = rows.all_rows()
    columns = rows._rows.columns
    assert rows.context_tokens == int(columns[Column.CONTEXT].sum())
    assert rows.num_running == int(columns[Column.IS_READY].sum())
    assert len(rows) == len(held) == len(rows.holdings())
    for row, blocks, context in zip(held, columns[Column.HELD].tolist(), columns[Column.CONTEXT].tolist(), strict=True):
        assert row.holding.blocks == blocks >= -(-context // BLOCK_TOKENS)
    assert pool.num_held == sum(row.holding.blocks for row in held)
    fresh = DecodeRows(pool, BLOCK_TOKENS, max_running=6)  # knows no shortcut
    fresh.lengths, fresh._rows, fresh._wanted = rows.lengths, rows._rows, rows._wanted
    fresh._changed(wanted=True)
    assert rows.peak_blocks() == fresh.peak_blocks()
    assert rows.wanted_blocks == fresh.wanted_blocks
    assert rows.decide(0.0, busy_blocks=1, parked_blocks=2) == fresh.decide(0.0, busy_blocks=1, parked_blocks=2)


@given(st.data())
def test_what_is_kept_for_speed_is_what_the_rows_say(data: st.DataObject):
    """Rows want, are granted, become ready, step, end, are dropped, in any order that an engine may ask for."""
    rows, pool = make_rows(40)
    waiting: list[Attempt] = []
    for index in range(data.draw(st.integers(5, 25))):
        match data.draw(st.sampled_from(["want", "want", "ready", "step", "step", "drop"])):
            case "want":
                output = data.draw(st.integers(2, 30))
                one = attempt(index, data.draw(st.integers(1, 60)), output, data.draw(st.integers(output, 60)))
                rows.want(one, 0.0, is_local=False)
                waiting.append(one)
            case "ready":
                granted = [one for one in waiting if (row := rows.find(one)) is not None and row.holds_blocks]
                if granted:
                    waiting.remove(granted[0])
                    assert rows.ready(granted[0])
            case "drop":
                known = rows.attempts()
                if known:
                    gone = data.draw(st.sampled_from(known))
                    rows.drop(gone)
                    rows.drop(gone)
                    assert gone not in rows
                    waiting = [one for one in waiting if one is not gone]
            case "step":
                _step(rows, data)
        assert_books_are_right(rows, pool)
    for one in rows.attempts():
        rows.drop(one)
    assert_books_are_right(rows, pool)
    assert pool.num_free == 40


def _step(rows: DecodeRows, data: st.DataObject) -> None:
    """As an engine performs a plan."""
    plan = rows.decide(0.0, busy_blocks=0, parked_blocks=0)
    chosen = rows.rows(plan.decode_rows)
    for victim in rows.rows(plan.preempt):
        rows.drop(victim.attempt)
    rows.reserve_next(rows.places_of(chosen))
    for _ in plan.grants:
        if rows.grant_first() is None:
            break
    places = rows.places_of(chosen)
    if not len(places):
        return
    assert len(plan.preempt) + len(plan.grants) > 0 or places.tolist() == rows.places(plan.decode_rows).tolist()
    to_end, context = rows.outlook(places)
    assert context == sum(rows.tokens_said(row) + row.attempt.request.num_prompt_tokens - 1 for row in chosen)
    num_steps = data.draw(st.integers(1, min(plan.repeat, to_end)))
    rows.stepped(places, num_steps)
    ended = rows.complete(places)
    assert bool(ended) == (num_steps == to_end)
    for row in ended:
        assert rows.tokens_said(row) == row.attempt.output_tokens
        rows.end(row)


def test_what_is_gone_is_not_made_ready():
    rows, _ = make_rows(40)
    one = attempt(0, 10, 5, 5)
    rows.want(one, 0.0, is_local=False)
    rows.drop(one)
    assert not rows.ready(one)
    assert rows.num_wanted == 0


def test_a_grant_waits_while_blocks_have_yet_to_be_given_up():
    rows, pool = make_rows(4)
    rows.want(attempt(0, 40, 5, 5), 0.0, is_local=False)
    assert rows.grant_first() is None
    assert (rows.num_wanted, len(rows), pool.num_free) == (1, 0, 4)


def test_an_answer_that_ended_is_remembered_and_one_that_was_dropped_is_not():
    rows, _ = make_rows(40)
    for index in range(2):
        rows.want(attempt(index, 8, 5, 5), 0.0, is_local=True)
    first, second = rows.grant_first(), rows.grant_first()
    assert first is not None
    assert second is not None
    rows.end(first)
    rows.drop(second.attempt)
    assert len(rows.lengths) == 1
