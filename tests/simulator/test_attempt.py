"""What simulated workers see of one attempt, beside what a live one sees of it."""

from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.messages import Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.model.sequence import Sequence
from twinpool.simulator.attempt import Attempt


def attempt(prompt: int = 100, emitted: int = 0, output: int = 10, pieces: int = 0, priority: int = 0) -> Attempt:
    ids = tuple(range(prompt + emitted))
    request = Request("r1", 2, ids, prompt, SamplingParams(max_tokens=50), Goal(1, 1), priority)
    return Attempt(request, 1, 0, 3.5, output, tuple(("", piece) for piece in range(pieces)), 16)


@given(st.integers(1, 300), st.integers(0, 9), st.integers(10, 50))
def test_it_counts_as_a_live_sequence_does(prompt: int, emitted: int, output: int):
    one = attempt(prompt, emitted, output)
    sequence = Sequence(one.request, "g", 3.5, list(one.request.token_ids))
    assert one.age_order == sequence.age_order
    assert (one.num_tokens, one.first_index) == (len(sequence.token_ids), sequence.next_index)
    while sequence.next_index < output:  # each token sampled stores the one before it
        sequence.num_computed = len(sequence.token_ids)
        sequence.token_ids.append(0)
    assert one.final_context == sequence.num_computed


def test_pieces_lie_whole_within_so_many_tokens():
    one = attempt(pieces=3)
    assert [one.pieces_in(tokens) for tokens in (0, 15, 16, 31, 32, 48, 1000)] == [0, 0, 1, 1, 2, 3, 3]
    assert attempt(pieces=0).pieces_in(1000) == 0


def test_smaller_priorities_go_first_whenever_they_came():
    assert attempt(priority=-1).age_order < attempt(priority=0).age_order
