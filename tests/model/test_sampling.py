from dataclasses import replace

import pytest
import torch

from twinpool.core.sampling import MAX_SEED, SamplingParams
from twinpool.model.batch import NO_TOKEN, SampleRow
from twinpool.model.sampling import sample

GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=1.0, seed=5)


def rows(*samplings, index=0, choice=0):
    return [SampleRow(row, sampling, index, choice) for row, sampling in enumerate(samplings)]


def draw(logits, sampling, count):
    """``count`` draws of one distribution, at successive indices."""
    return sample(logits.expand(count, -1), [SampleRow(0, sampling, index) for index in range(count)])


def allowed(logits, sampling, count=3000):
    return set(draw(torch.tensor(logits), sampling, count).tolist())


def test_greedy_takes_the_largest_and_the_lowest_id_among_equals():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -2.0, -0.5, -9.0]])
    assert sample(logits, rows(GREEDY, GREEDY, GREEDY)).tolist() == [1, 0, 2]


def test_draws_follow_the_softmax_of_logits_over_temperature():
    logits, count = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, -3.0]), 20_000
    for temperature in (0.7, 1.0, 1.8):
        drawn = draw(logits, replace(DRAWN, temperature=temperature), count)
        expected = (logits / temperature).softmax(0) * count
        chi_square = ((drawn.bincount(minlength=6) - expected) ** 2 / expected).sum()
        assert chi_square < 20.5  # 5 degrees of freedom: 0.1 %


def test_a_row_does_not_depend_on_its_neighbours():
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    samplings = [
        DRAWN,
        GREEDY,
        replace(DRAWN, top_k=7),
        replace(DRAWN, top_p=0.6, seed=9),
        replace(DRAWN, top_k=50, top_p=0.5, temperature=2.0),
        replace(DRAWN, temperature=0.2),
    ]
    together = sample(logits, rows(*samplings, index=3)).tolist()
    alone = [int(sample(logits[r : r + 1], rows(s, index=3))) for r, s in enumerate(samplings)]
    reverse = sample(logits.flip(0), rows(*reversed(samplings), index=3)).tolist()
    assert together == alone == reverse[::-1]


def test_seed_index_and_choice_each_change_the_draws_and_nothing_else_does():
    logits = torch.zeros(1, 1000)
    drawn = {
        int(sample(logits, [SampleRow(0, replace(DRAWN, seed=seed), index, choice)]))
        for seed, index, choice in [(5, 0, 0), (6, 0, 0), (5, 1, 0), (5, 0, 1), (5 + 2**32, 0, 0), (MAX_SEED, 0, 0)]
    }
    assert len(drawn) == 6
    again = [int(sample(logits, [SampleRow(row, DRAWN, 0)])) for row in (0, 3)]
    assert again[0] == again[1]


def test_logits_are_not_changed():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    sample(logits, rows(GREEDY, DRAWN, replace(DRAWN, top_k=3, top_p=0.4)))
    assert torch.equal(logits, before)


def test_top_k_keeps_the_k_largest_and_what_ties_with_the_last():
    logits = [1.0, 3.0, 2.0, 2.0, 0.0]
    hot = replace(DRAWN, temperature=3.0)
    assert allowed(logits, replace(hot, top_k=1)) == {1}
    assert allowed(logits, replace(hot, top_k=2)) == {1, 2, 3}
    assert allowed(logits, replace(hot, top_k=4)) == {0, 1, 2, 3}
    assert allowed(logits, replace(hot, top_k=5)) == allowed(logits, replace(hot, top_k=99)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_fewest_that_reach_p_and_always_one():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()
    assert allowed(logits, replace(DRAWN, top_p=1e-6)) == {1}
    assert allowed(logits, replace(DRAWN, top_p=0.39)) == {1}
    assert allowed(logits, replace(DRAWN, top_p=0.41)) == {1, 3}
    assert allowed(logits, replace(DRAWN, top_p=0.69)) == {1, 3}
    assert allowed(logits, replace(DRAWN, top_p=0.89)) == {1, 2, 3}
    assert allowed(logits, replace(DRAWN, top_p=0.95)) == {0, 1, 2, 3}


def test_top_p_takes_the_lower_id_first_among_equals():
    assert allowed([0.0, 0.0, 0.0, 0.0], replace(DRAWN, top_p=0.5)) == {0, 1}


def test_top_p_counts_what_top_k_left_and_both_come_after_the_temperature():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()
    assert allowed(logits, replace(DRAWN, top_k=2, top_p=0.55)) == {1}  # 0.4 of 0.7
    assert allowed(logits, replace(DRAWN, top_k=3, top_p=0.55)) == {1, 3}  # 0.4 of 0.9
    assert allowed(logits, replace(DRAWN, temperature=0.25, top_p=0.69)) == {1}  # 0.4 ** 4 of all


def test_filters_agree_with_transformers():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(1)) * 2
    kept = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(12)(None, logits)).isfinite()
    assert allowed(logits[0].tolist(), replace(DRAWN, top_k=12, top_p=0.8)) == set(kept[0].nonzero()[:, 0].tolist())


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)) * 1e3
    assert sample(logits, rows(replace(DRAWN, temperature=temperature))).item() == logits.argmax()


def test_an_id_whose_logit_is_minus_infinity_is_never_drawn():
    assert allowed([0.0, -torch.inf, 0.0], replace(DRAWN, temperature=100.0)) == {0, 2}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_gets_no_token_and_its_neighbours_do(bad):
    logits = torch.zeros(5, 8)
    logits[:, 6] = 50.0
    logits[1, 3] = logits[3, 3] = bad
    drawn = sample(logits, rows(GREEDY, GREEDY, DRAWN, replace(DRAWN, top_k=3, top_p=0.5), GREEDY))
    assert drawn.tolist() == [6, NO_TOKEN, 6, NO_TOKEN, 6]


def test_a_row_without_any_possible_id_gets_no_token():
    assert sample(torch.full((2, 4), -torch.inf), rows(GREEDY, DRAWN)).tolist() == [NO_TOKEN, NO_TOKEN]
