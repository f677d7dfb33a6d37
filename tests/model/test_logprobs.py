"""How probable the model found tokens, and the prompt's tokens through the runner."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.sampling import SamplingParams
from twinpool.model.batch import NO_TOKEN, SampleRow
from twinpool.model.logprobs import SLICE_ROWS, Wanted, logprobs_in_slices, token_logprobs
from twinpool.model.sampling import sample, sampled_logprobs


def random_logits(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4


def brute_force(logits: list[float], token: int, num_top: int) -> tuple[float, list[int], list[float]]:
    """In float64, by sorting everything."""
    total = math.log(math.fsum(math.exp(x - max(logits)) for x in logits)) + max(logits)
    best = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:num_top]
    return logits[token] - total, best, [logits[i] - total for i in best]


@given(
    data=st.data(),
    vocab=st.integers(1, 9),
    level=st.sampled_from([1.0, 50.0, 1e4]),
)
def test_logprobs_equal_brute_force_and_the_lower_id_goes_first_among_equals(data, vocab, level):
    coarse = st.integers(-4, 4).map(lambda k: k / 4 * level)
    rows = data.draw(st.lists(st.lists(coarse, min_size=vocab, max_size=vocab), min_size=1, max_size=5))
    tokens = [data.draw(st.integers(0, vocab - 1)) for _ in rows]
    num_top = [data.draw(st.integers(0, vocab + 2)) for _ in rows]
    for found, logits, token, count in zip(
        token_logprobs(torch.tensor(rows), tokens, num_top), rows, tokens, num_top, strict=True
    ):
        own, ids, values = brute_force(logits, token, count)
        assert found.token_id == token
        assert found.logprob == pytest.approx(own, rel=1e-5, abs=1e-5)
        assert [i for i, _ in found.top] == ids
        assert [value for _, value in found.top] == pytest.approx(values, rel=1e-5, abs=1e-5)


def test_logprobs_of_a_row_do_not_depend_on_its_neighbours_to_the_last_bit():
    logits = random_logits(70, 1003)
    tokens, num_top = [r * 7 for r in range(70)], [r % 21 for r in range(70)]
    together = token_logprobs(logits, tokens, num_top)
    alone = [token_logprobs(logits[r : r + 1], [tokens[r]], [num_top[r]])[0] for r in range(70)]
    assert together == alone


def test_the_tokens_own_value_is_the_one_it_has_among_the_top():
    logits = random_logits(3, 50)
    for row, found in enumerate(token_logprobs(logits, logits.argmax(-1).tolist(), [3, 1, 20])):
        assert found.top[0] == (found.token_id, found.logprob), row


def test_a_row_that_is_not_finite_leaves_its_neighbours_their_top():
    logits = random_logits(3, 20)
    logits[1, 4] = torch.nan
    found = token_logprobs(logits, [0, 0, 0], [2, 2, 2])
    wanted = token_logprobs(logits[::2], [0, 0], [2, 2])
    assert [found[0], found[2]] == wanted
    assert math.isnan(found[1].logprob)


@pytest.mark.parametrize("count", [0, 1, SLICE_ROWS - 1, SLICE_ROWS, SLICE_ROWS + 1, 3 * SLICE_ROWS + 5])
def test_never_more_than_a_slice_of_logits_is_made_at_once(count):
    logits, sizes = random_logits(count, 30), []

    def make(at):
        sizes.append(len(at))
        return logits[at]

    wanted = [Wanted(row, row % 30, row % 4) for row in reversed(range(count))]
    found = logprobs_in_slices(wanted, make)
    assert sum(sizes) == count
    assert max(sizes, default=0) <= SLICE_ROWS
    assert found == token_logprobs(logits.flip(0), [w.token_id for w in wanted], [w.num_top for w in wanted])


def test_sampled_tokens_get_the_raw_distributions_logprobs_where_asked_for():
    logits = random_logits(5, 40)
    logits[3, 0] = torch.nan
    changed = SamplingParams(
        temperature=0.3, seed=1, logit_bias=((5, 100.0),), repetition_penalty=3.0, top_k=2, logprobs=2
    )
    plain = SamplingParams(temperature=0.0, logprobs=0)
    quiet = SamplingParams(temperature=0.0)
    rows = [SampleRow(r, s, 0, 0, [1, 2, 3]) for r, s in enumerate((changed, quiet, plain, plain, quiet))]
    ids = sample(logits, rows).tolist()
    found = sampled_logprobs(logits, rows, ids)
    wanted = logits.log_softmax(-1)
    assert ids[0] == 5
    assert ids[3] == NO_TOKEN
    assert [f is not None for f in found] == [True, False, True, False, False]
    assert (found[0].token_id, found[0].logprob) == (5, wanted[0, 5].item())
    assert found[0].top == tuple((int(i), wanted[0, i].item()) for i in logits[0].topk(2).indices)
    assert (found[2].token_id, found[2].logprob, found[2].top) == (ids[2], wanted[2].max().item(), ())


def prompt(length: int, seed: int = 0, vocab: int = 131) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, length).tolist()


def peers_logprobs(folder, tokens: list[int]) -> torch.Tensor:
    """transformers' log-softmax after each token of one full forward pass."""
    from transformers import LlamaForCausalLM

    with torch.no_grad():
        return LlamaForCausalLM.from_pretrained(folder)(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def assert_scores(found, tokens, wanted, num_top):
    """``found[i]`` scores ``tokens[i]`` by row i of ``wanted``."""
    assert [one.token_id for one in found] == tokens
    for one, row in zip(found, wanted, strict=True):
        assert one.logprob == pytest.approx(row[one.token_id].item(), abs=1e-4)
        best = row.topk(num_top)
        assert [i for i, _ in one.top] == best.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 13, 64, 89, 90, 200])
def test_prompt_and_answer_logprobs_equal_a_full_forward_whole_and_chunked(write_llama, load_driver, chunk):
    folder, ids = write_llama(), prompt(90)
    driver = load_driver(folder)
    sampling = SamplingParams(temperature=0.0, logprobs=5, prompt_logprobs=3)
    sequence = driver.sequence(ids, range(20), sampling)
    driver.answer(sequence, 6, chunk)
    wanted = peers_logprobs(folder, sequence.tokens)
    assert_scores(sequence.prompt_logprobs, ids[1:], wanted[:89], 3)
    assert_scores(sequence.logprobs, sequence.answer, wanted[89:-1], 5)


def test_sequences_that_score_sample_both_or_neither_share_a_batch(write_llama, load_driver):
    folder = write_llama()
    driver = load_driver(folder)
    both = SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=2)
    samplings = [both, SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, prompt_logprobs=0), both]
    lengths = (75, 20, 1, 9)
    sequences = [
        driver.sequence(prompt(n, seed=n), range(16 * i, 16 * i + 16), s)
        for i, (n, s) in enumerate(zip(lengths, samplings, strict=True))
    ]
    while any(len(s.answer) < 3 for s in sequences):
        driver.step(*((s, min(12 + i, len(s.tokens) - s.computed)) for i, s in enumerate(sequences)))
    for length, sampling, sequence in zip(lengths, samplings, sequences, strict=True):
        wanted = peers_logprobs(folder, sequence.tokens)
        if sampling is both:
            assert_scores(sequence.prompt_logprobs, sequence.tokens[1:length], wanted[: length - 1], 2)
            assert_scores(sequence.logprobs, sequence.answer, wanted[length - 1 : -1], 1)
        else:
            assert sequence.prompt_logprobs == []  # not asked for, or a prompt of one token
            assert set(sequence.logprobs) == {None}


def test_scoring_a_prompt_does_not_change_the_answer(write_llama, load_driver):
    driver = load_driver(write_llama())
    plain = SamplingParams(temperature=0.7, seed=3)
    scored = SamplingParams(temperature=0.7, seed=3, logprobs=2, prompt_logprobs=2)
    answers = [driver.answer(driver.sequence(prompt(150), range(20), s), 8) for s in (plain, scored)]
    assert answers[0] == answers[1]
