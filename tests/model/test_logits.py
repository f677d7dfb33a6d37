"""Bias, forbidden ids and penalties against brute force, at their limits, and over long contexts."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.sampling_oracle import changed_logits
from twinpool.core.sampling import MAX_TOKEN_ID, SamplingParams
from twinpool.model.batch import SampleRow
from twinpool.model.logits import change_logits, changes_logits

VOCAB = 12
TOKENS = st.integers(0, VOCAB - 1)


def row_of(context=(), index=0, forbidden_ids=(), **sampling) -> SampleRow:
    return SampleRow(0, SamplingParams(seed=1, **sampling), index, 0, list(context), tuple(forbidden_ids))


def changed(logits: list[float], row: SampleRow) -> list[float]:
    tensor = torch.tensor([logits])
    change_logits(tensor, [row])
    return tensor[0].tolist()


@st.composite
def sample_rows(draw) -> SampleRow:
    context = draw(st.lists(TOKENS, max_size=20))
    bias = draw(st.dictionaries(st.integers(0, VOCAB + 2), st.floats(-100, 100), max_size=4))
    return row_of(
        context,
        draw(st.integers(0, len(context))),
        draw(st.lists(st.integers(0, VOCAB + 2), max_size=3)),
        logit_bias=tuple(bias.items()),
        repetition_penalty=draw(st.sampled_from([0.01, 0.7, 1.0, 1.0, 1.3, 100.0])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, -2.0, 0.3, 2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -2.0, 0.7, 2.0])),
    )


LOGITS = st.lists(st.floats(-1e4, 1e4, width=32) | st.just(-math.inf), min_size=VOCAB, max_size=VOCAB)


@given(pairs=st.lists(st.tuples(LOGITS, sample_rows()), min_size=1, max_size=6))
def test_changed_logits_equal_brute_force_and_those_of_a_row_alone(pairs):
    together = torch.tensor([logits for logits, _ in pairs])
    change_logits(together, [row for _, row in pairs])
    for after, (logits, row) in zip(together.tolist(), pairs, strict=True):
        assert after == changed(logits, row)
        assert after == pytest.approx(changed_logits(logits, row), rel=1e-5, abs=1e-3)
        if not changes_logits(row):
            assert after == logits


def test_bias_comes_before_the_repetition_penalty_and_the_answers_penalties_come_after():
    row = row_of([0, 1, 1], 2, logit_bias=((0, 2.0), (1, -4.0)), repetition_penalty=2.0, presence_penalty=0.5)
    assert changed([1.0, 1.0, 1.0], row) == [1.5, -6.5, 1.0]


def test_the_repetition_penalty_counts_the_prompt_and_the_other_two_the_answer_only():
    context = [0, 0, 1, 1, 1, 2]
    assert changed([4.0] * 4, row_of(context, 3, repetition_penalty=2.0)) == [2.0, 2.0, 2.0, 4.0]
    assert changed([4.0] * 4, row_of(context, 3, presence_penalty=1.5)) == [4.0, 2.5, 2.5, 4.0]
    assert changed([4.0] * 4, row_of(context, 3, frequency_penalty=1.5)) == [4.0, 1.0, 2.5, 4.0]
    assert changed([4.0] * 4, row_of(context, 0, frequency_penalty=1.5, presence_penalty=2.0)) == [4.0] * 4


def test_a_forbidden_id_stays_so_whatever_bias_and_penalties_say():
    row = row_of([1], 1, [1], logit_bias=((1, 100.0),), repetition_penalty=0.01, frequency_penalty=-2.0)
    assert changed([0.0, 9.0], row) == [0.0, -math.inf]


def test_a_bias_of_minus_100_is_a_plain_addition():
    assert changed([150.0, 0.0], row_of(logit_bias=((0, -100.0),))) == [50.0, 0.0]


def test_ids_outside_the_vocabulary_have_no_effect():
    far = (2, MAX_TOKEN_ID)
    row = row_of([0, *far], 3, far, logit_bias=tuple((i, 5.0) for i in far), presence_penalty=1.0)
    assert changed([1.0, 2.0], row) == [0.0, 2.0]


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_finite_logits_stay_finite_at_the_ends_of_float32(penalty):
    largest = torch.finfo(torch.float32).max
    row = row_of([0, 1, 2], 3, repetition_penalty=penalty, logit_bias=((0, 100.0),), frequency_penalty=2.0)
    after = changed([largest, -largest, -math.inf, 1.0], row)
    assert [math.isfinite(x) for x in after] == [True, True, False, True]


@pytest.mark.parametrize("num_tokens", [8191, 8192, 100_000])
def test_a_long_context_is_counted_like_a_short_one(num_tokens):
    generator = np.random.default_rng(num_tokens)
    context = generator.integers(0, 3000, num_tokens).tolist()
    logits = torch.tensor([generator.normal(size=4000).tolist()])
    after = logits.clone()
    change_logits(after, [row_of(context, num_tokens - 10, repetition_penalty=2.0, frequency_penalty=0.25)])
    seen, counts = set(context), Counter(context[10:])
    for token, (old, new) in enumerate(zip(logits[0].tolist(), after[0].tolist(), strict=True)):
        repeated = (old / 2 if old > 0 else old * 2) if token in seen else old
        assert new == pytest.approx(repeated - 0.25 * counts[token], abs=1e-4)
