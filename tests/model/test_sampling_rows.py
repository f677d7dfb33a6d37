"""Whole batches of every parameter against brute force, row by row."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.sampling_oracle import possible_tokens
from twinpool.core.sampling import MAX_SEED, SamplingParams
from twinpool.model.batch import NO_TOKEN, SampleRow
from twinpool.model.sampling import sample

VOCAB = 14
TOKENS = st.integers(0, VOCAB - 1)
GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=1.0, seed=5)


@st.composite
def sample_rows(draw) -> SampleRow:
    context = draw(st.lists(TOKENS, max_size=12))
    sampling = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 1e-30, 0.3, 1.0, 2.5, 100.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 3, 8, 99])),
        top_p=draw(st.sampled_from([1.0, 1.0, 1e-6, 0.31, 0.77, 0.99])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.013, 0.21, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.01, 0.8, 1.2, 100.0])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, -2.0, 0.6, 2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -2.0, 0.4, 2.0])),
        logit_bias=tuple(draw(st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=3)).items()),
        seed=draw(st.integers(0, MAX_SEED)),
    )
    index, choice = draw(st.integers(0, len(context))), draw(st.integers(0, 3))
    forbidden_ids = tuple(draw(st.sampled_from([[], [], [0], [3, 3, 9], list(range(VOCAB))])))
    return SampleRow(0, sampling, index, choice, context, forbidden_ids)


@st.composite
def logit_rows(draw) -> list[float]:
    scale = draw(st.sampled_from([1e-3, 1.0, 1e4]))
    values = st.floats(-3, 3, width=32).map(lambda x: x * scale) | st.just(-math.inf)
    logits = draw(st.lists(values, min_size=VOCAB, max_size=VOCAB))
    bad = draw(st.sampled_from([None] * 9 + [math.nan, math.inf]))
    return logits if bad is None else [bad, *logits[1:]]


@given(pairs=st.lists(st.tuples(logit_rows(), sample_rows()), min_size=1, max_size=7))
def test_every_row_gets_what_brute_force_gives_it_and_what_it_gets_alone(pairs):
    logits, rows = torch.tensor([logits for logits, _ in pairs]), [row for _, row in pairs]
    before = logits.clone()
    together = sample(logits, rows).tolist()
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))
    assert together == [int(sample(logits[r : r + 1], [row])) for r, row in enumerate(rows)]
    for token, values, row in zip(together, logits.tolist(), rows, strict=True):
        assert token in possible_tokens(values, row)


def test_a_row_of_a_large_batch_equals_the_row_alone_over_a_large_vocabulary():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(24, 5003, generator=generator) * 3
    kinds = [
        GREEDY,
        DRAWN,
        replace(DRAWN, top_p=0.9, min_p=0.02),
        replace(DRAWN, top_k=40, repetition_penalty=1.2),
        replace(GREEDY, presence_penalty=1.0, frequency_penalty=0.5),
        replace(DRAWN, temperature=3.0, logit_bias=((7, 4.0), (5002, 6.0))),
    ]
    contexts = torch.randint(0, 5003, (24, 60), generator=generator).tolist()
    rows = [SampleRow(r, kinds[r % 6], r, r % 2, contexts[r], (r, r + 1)) for r in range(24)]
    together = sample(logits, rows).tolist()
    assert together == [int(sample(logits[r : r + 1], [row])) for r, row in enumerate(rows)]
    assert together == sample(logits.flip(0), rows[::-1]).tolist()[::-1]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, top_k=2, top_p=0.5, min_p=0.1)])
def test_a_row_whose_ids_are_all_forbidden_gets_no_token_and_its_neighbours_do(sampling):
    logits = torch.zeros(3, 4)
    logits[:, 2] = 50.0
    rows = [SampleRow(0, sampling, 0), SampleRow(0, sampling, 0, 0, (), (0, 1, 2, 3)), SampleRow(0, sampling, 0)]
    assert sample(logits, rows).tolist() == [2, NO_TOKEN, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("change", [{"logit_bias": ((0, -100.0),)}, {"repetition_penalty": 2.0}, {}])
def test_a_logit_that_is_not_finite_is_not_hidden_by_forbidding_it(bad, change):
    logits = torch.tensor([[bad, 1.0, 2.0]])
    for sampling in (replace(GREEDY, **change), replace(DRAWN, **change)):
        assert sample(logits, [SampleRow(0, sampling, 0, 0, [0], (0,))]).tolist() == [NO_TOKEN]


def draws(logits, sampling, count, context=()):
    rows = [SampleRow(0, sampling, index, 0, context) for index in range(count)]
    return sample(torch.tensor(logits).expand(count, -1), rows)


def test_min_p_keeps_what_is_at_least_that_share_as_probable_as_the_best():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()
    for min_p, wanted in [(0.2, {0, 1, 2, 3}), (0.26, {1, 2, 3}), (0.51, {1, 3}), (0.76, {1}), (1.0, {1})]:
        assert set(draws(logits, replace(DRAWN, min_p=min_p), 2000).tolist()) == wanted


def test_min_p_of_one_keeps_all_that_tie_with_the_best():
    assert set(draws([1.0, 2.0, 2.0, 2.0], replace(DRAWN, min_p=1.0), 500).tolist()) == {1, 2, 3}


def test_min_p_comes_after_the_temperature():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()
    assert set(draws(logits, replace(DRAWN, temperature=0.25, min_p=0.3), 2000).tolist()) == {1, 3}  # (3/4) ** 4 = 0.32


ONE_FILTER = [
    pytest.param(filters, marks=pytest.mark.slow) for filters in ({"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.2})
]


@pytest.mark.parametrize("filters", [*ONE_FILTER, {"top_k": 6, "top_p": 0.9, "min_p": 0.05}])
def test_what_the_filters_leave_is_drawn_by_its_renormalised_probability(filters):
    logits, count = torch.randn(12, generator=torch.Generator().manual_seed(8)), 20_000
    sampling = replace(DRAWN, temperature=0.9, logit_bias=((3, 1.0), (9, -0.5)), **filters)
    drawn = draws(logits.tolist(), sampling, count).bincount(minlength=12)
    biased = logits.clone()
    biased[3] += 1.0
    biased[9] -= 0.5
    kept = drawn > 0
    expected = (biased[kept] / 0.9).softmax(0) * count
    chi_square = ((drawn[kept] - expected) ** 2 / expected).sum()
    assert 2 < int(kept.sum()) < 12
    assert chi_square < 31.3  # the largest 0.1 % point, of 11 degrees of freedom
