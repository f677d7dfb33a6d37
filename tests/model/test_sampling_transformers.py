"""Sampling against transformers: its processors on random logits, and its greedy generation of a small model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from twinpool.core.sampling import SamplingParams
from twinpool.kernels.noise import gumbel_noise
from twinpool.model.batch import SampleRow
from twinpool.model.logits import change_logits
from twinpool.model.logprobs import token_logprobs
from twinpool.model.sampling import sample

VOCAB = 200
ROWS = 48
EOS = (3, 150)
GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=0.8, seed=77)
CHANGES = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6},
    {"logit_bias": ((5, 3.5), (17, -100.0), (199, 100.0))},
    {"logit_bias": ((5, -1.0), (60, 2.0)), "repetition_penalty": 1.7, "min_tokens": 20},
]
FILTERS = [
    {},
    {"top_k": 9},
    {"top_p": 0.63},
    {"min_p": 0.12},
    {"temperature": 1.9, "top_k": 60, "top_p": 0.9, "min_p": 0.03},
    {"temperature": 0.3, "top_k": 3, "top_p": 0.5, "min_p": 0.5},
]


def random_logits() -> torch.Tensor:
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1)) * 2


def sample_rows(sampling: SamplingParams) -> list[SampleRow]:
    """One row for each index of an answer to a prompt of 30 tokens."""
    context = np.random.default_rng(2).integers(0, VOCAB, 30 + ROWS).tolist()
    return [
        SampleRow(i, sampling, i, 0, context[: 30 + i], EOS if i < sampling.min_tokens else ()) for i in range(ROWS)
    ]


def processed(logits: torch.Tensor, rows: list[SampleRow]) -> torch.Tensor:
    """What transformers makes of the logits, with the processors in ``generate``'s own order."""
    import transformers as peer

    found = []
    for scores, row in zip(logits.split(1), rows, strict=True):
        sampling, steps = row.sampling, peer.LogitsProcessorList()
        if sampling.logit_bias:
            steps.append(peer.SequenceBiasLogitsProcessor({(i,): bias for i, bias in sampling.logit_bias}))
        if sampling.repetition_penalty != 1:
            steps.append(peer.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.min_tokens:
            steps.append(peer.MinNewTokensLengthLogitsProcessor(30, sampling.min_tokens, list(EOS)))
        if sampling.temperature > 0:
            steps.append(peer.TemperatureLogitsWarper(sampling.temperature))
            steps += [peer.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
            steps += [peer.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
            steps += [peer.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
        found.append(steps(torch.tensor([row.context]), scores.clone()))
    return torch.cat(found)


def noise(rows: list[SampleRow]) -> torch.Tensor:
    seeds, choices = torch.tensor([77] * ROWS), torch.zeros(ROWS, dtype=torch.int64)
    at, tokens = torch.arange(ROWS).repeat_interleave(VOCAB), torch.arange(VOCAB).repeat(ROWS)
    return gumbel_noise(seeds, torch.tensor([row.index for row in rows]), choices, at, tokens).view(ROWS, VOCAB)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_logits_equal_those_of_transformers_processors(change):
    logits, rows = random_logits(), sample_rows(replace(GREEDY, **change))
    wanted = processed(logits, rows)
    change_logits(logits, rows)
    torch.testing.assert_close(logits, wanted)


def test_suppressed_tokens_are_forbidden_ids():
    from transformers import SuppressTokensLogitsProcessor

    logits = random_logits()
    wanted = SuppressTokensLogitsProcessor(list(EOS))(None, logits)
    change_logits(logits, [replace(row, forbidden_ids=EOS) for row in sample_rows(GREEDY)])
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("change", [{}, *CHANGES])
def test_draws_are_the_noisy_best_of_what_transformers_leaves(change, filters):
    logits, rows = random_logits(), sample_rows(replace(DRAWN, **change, **filters))
    left = processed(logits, rows)
    assert sample(logits, rows).tolist() == (left + noise(rows)).argmax(-1).tolist()


def test_rows_of_all_these_parameters_in_one_batch_are_as_alone():
    samplings = [replace(DRAWN, **change, **filters) for change in CHANGES for filters in FILTERS] * 2
    logits = random_logits()
    rows = [sample_rows(sampling)[i] for i, sampling in enumerate(samplings)]
    assert sample(logits, rows).tolist() == (processed(logits, rows) + noise(rows)).argmax(-1).tolist()


def test_logprobs_equal_the_log_softmax_whatever_is_sampled():
    from transformers import LogitNormalization

    logits = random_logits()
    wanted = LogitNormalization()(None, logits)
    found = token_logprobs(logits, [7] * ROWS, [4] * ROWS)
    assert [one.logprob for one in found] == wanted[:, 7].tolist()
    best = wanted.topk(4)
    assert [[i for i, _ in one.top] for one in found] == best.indices.tolist()
    assert [[value for _, value in one.top] for one in found] == best.values.tolist()


@pytest.mark.slow
def test_greedy_generation_with_penalties_bias_and_a_least_length_equals_transformers(write_llama, load_driver):
    from transformers import LlamaForCausalLM

    folder, length, count = write_llama(eos_token_id=None), 23, 44
    peer, driver = LlamaForCausalLM.from_pretrained(folder), load_driver(folder)
    prompts = [np.random.default_rng(seed).integers(0, 131, length + seed).tolist() for seed in range(7)]
    ends = driver.answer(driver.sequence(prompts[2], range(20)), 3)[2]  # what greedy says third
    cases = [
        ({}, {}),
        ({"repetition_penalty": 1.15}, {"repetition_penalty": 1.15}),
        ({"min_tokens": 42, "stop_token_ids": (ends,)}, {"min_new_tokens": 42, "eos_token_id": ends}),
        ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}),
        ({"logit_bias": ((9, 1.5), (40, -100.0))}, {"sequence_bias": {(9,): 1.5, (40,): -100.0}}),
        ({"repetition_penalty": 5.0}, {"repetition_penalty": 5.0}),
        (
            {"logit_bias": ((2, 2.0),), "repetition_penalty": 1.4, "min_tokens": 30, "stop_token_ids": (2,)},
            {"sequence_bias": {(2,): 2.0}, "repetition_penalty": 1.4, "min_new_tokens": 30, "eos_token_id": 2},
        ),
    ]
    sequences = [
        driver.sequence(ids, range(10 * i, 10 * i + 10), replace(GREEDY, **ours))
        for i, (ids, (ours, _)) in enumerate(zip(prompts, cases, strict=True))
    ]
    while any(len(s.answer) < count for s in sequences):
        driver.step(*((s, min(9, len(s.tokens) - s.computed)) for s in sequences if len(s.answer) < count))
    plain = [driver.answer(driver.sequence(ids, range(80, 90)), count) for ids in prompts]
    for ids, (ours, theirs), sequence, without in zip(prompts, cases, sequences, plain, strict=True):
        whole, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)
        options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0} | theirs
        wanted = peer.generate(whole, attention_mask=mask, **options)[0, len(ids) :].tolist()
        assert sequence.answer[: len(wanted)] == wanted, ours
        assert len(wanted) >= ours.get("min_tokens", count), ours
        assert (sequence.answer == without) == (not ours)
